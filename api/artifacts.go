package api

import "time"

// SchemaVersion is the only version of every artifact that there is yet.
const SchemaVersion = 1

// PayloadType is the media type of a signed payload; it is part of what is signed.
type PayloadType string

// Payload types.
const (
	PayloadIndex       PayloadType = "application/vnd.nixfleet.index.v1+json"
	PayloadFleet       PayloadType = "application/vnd.nixfleet.fleet.v1+json"
	PayloadRollout     PayloadType = "application/vnd.nixfleet.rollout.v1+json"
	PayloadRevocations PayloadType = "application/vnd.nixfleet.revocations.v1+json"
	PayloadToken       PayloadType = "application/vnd.nixfleet.enrollment-token.v1+json"
	PayloadFreshness   PayloadType = "application/vnd.nixfleet.freshness.v1+json" // reserved
)

// Caps on artifacts, in bytes of the payload unless a name says otherwise (design/artifacts.md).
const (
	MaxIndex       = 1 << 20
	MaxFleet       = 64 << 20
	MaxManifest    = 1 << 20
	MaxRevocations = 16 << 20
	MaxToken       = 16 << 10
	MaxHosts       = 256 << 20 // hosts.jsonl
	MaxLine        = 16 << 10  // one line of hosts.jsonl
	MaxHostname    = 253
	MaxChannel     = 63
	MaxWaves       = 100
	MaxSelector    = 16 // depth
	MaxProof       = 64
	MaxSignatures  = 16
	MaxProbes      = 64
	MaxTrust       = 1 << 20
)

// Envelope is a DSSE envelope (secure-systems-lab DSSE v1.0.2). Payload and Sig are standard base64.
type Envelope struct {
	PayloadType PayloadType `json:"payloadType"`
	Payload     string      `json:"payload"`
	Signatures  []Signature `json:"signatures"`
}

// Signature is one signature of an Envelope. KeyID is a hint and never decides anything.
type Signature struct {
	KeyID string `json:"keyid" strict:"optional"`
	Sig   string `json:"sig"`
}

// Index is the payload of index.dsse.json, the only file of a release repository that changes.
type Index struct {
	SchemaVersion   int                     `json:"schemaVersion"`
	Sequence        int64                   `json:"sequence"`
	SignedAt        time.Time               `json:"signedAt"`
	FreshnessWindow Duration                `json:"freshnessWindow"`
	Channels        map[string]IndexChannel `json:"channels"`
	Fleet           string                  `json:"fleet"`       // object: the newest fleet envelope
	Revocations     *string                 `json:"revocations"` // object, or null when there never were any
	// Released lists the refs that each channel was ever released at, oldest first: the release side
	// refuses to use one again. Readers have no use for it.
	Released map[string][]string `json:"released,omitempty"`
}

// IndexChannel names a channel's current release; the last three are objects.
type IndexChannel struct {
	RolloutID string `json:"rolloutId"`
	Manifest  string `json:"manifest"`
	Hosts     string `json:"hosts"`
	Fleet     string `json:"fleet"`
}

// Trust is trust.json: what a party believes.
type Trust struct {
	SchemaVersion int                     `json:"schemaVersion"`
	Release       TrustRelease            `json:"release"`
	Channels      map[string]TrustChannel `json:"channels" strict:"optional"`
	Enrollment    TrustEnrollment         `json:"enrollment" strict:"optional"`
	CacheKeys     []string                `json:"cacheKeys" strict:"optional"`
}

// TrustRelease holds the release keys and how many of them must sign.
type TrustRelease struct {
	Threshold          int        `json:"threshold"`
	Keys               []TrustKey `json:"keys"`
	RejectSignedBefore *time.Time `json:"rejectSignedBefore" strict:"optional"`
}

// TrustKey is one trusted key. PublicKey is SPKI in PEM; past RetireAt it verifies nothing.
type TrustKey struct {
	Name      string     `json:"name"`
	PublicKey string     `json:"publicKey"`
	RetireAt  *time.Time `json:"retireAt" strict:"optional"`
}

// TrustChannel narrows a channel: so many of these named release keys.
type TrustChannel struct {
	Threshold int      `json:"threshold"`
	Keys      []string `json:"keys"`
}

// TrustEnrollment holds the keys that sign enrollment tokens.
type TrustEnrollment struct {
	Keys []TrustKey `json:"keys"`
}

// Fleet is what is declared: the input of `nixfleet release create`, and the signed fleet payload.
type Fleet struct {
	SchemaVersion     int                     `json:"schemaVersion"`
	SignedAt          time.Time               `json:"signedAt,omitzero"`
	Commit            string                  `json:"commit,omitzero"`
	Hosts             map[string]FleetHost    `json:"hosts"`
	Channels          map[string]FleetChannel `json:"channels"`
	RolloutPolicies   map[string]Policy       `json:"rolloutPolicies"`
	Edges             []Edge                  `json:"edges" strict:"optional"`
	ChannelEdges      []Edge                  `json:"channelEdges" strict:"optional"`
	DisruptionBudgets []Budget                `json:"disruptionBudgets" strict:"optional"`
}

// FleetHost is one declared host.
type FleetHost struct {
	System  string   `json:"system"`
	Channel string   `json:"channel"`
	Tags    []string `json:"tags" strict:"optional"`
	Closure string   `json:"closure"`
	Pin     *Pin     `json:"pin" strict:"optional"`
}

// Pin holds one host on a closure.
type Pin struct {
	Closure   string     `json:"closure"`
	Reason    string     `json:"reason"`
	ExpiresAt *time.Time `json:"expiresAt" strict:"optional"`
}

// FleetChannel is one declared channel.
type FleetChannel struct {
	RolloutPolicy      string              `json:"rolloutPolicy"`
	FreshnessWindow    Duration            `json:"freshnessWindow"`
	MaintenanceWindows []MaintenanceWindow `json:"maintenanceWindows" strict:"optional"`
	Freezes            []Freeze            `json:"freezes" strict:"optional"`
}

// MaintenanceWindow opens when Cron (five fields, in TimeZone) fires, for Duration.
type MaintenanceWindow struct {
	Cron     string   `json:"cron"`
	Duration Duration `json:"duration"`
	TimeZone string   `json:"timeZone" strict:"optional"`
}

// Freeze closes a channel from From until Until.
type Freeze struct {
	From   time.Time `json:"from"`
	Until  time.Time `json:"until"`
	Reason string    `json:"reason" strict:"optional"`
}

// Policy is a rollout policy. In a fleet every field may be left out (internal/fleet fills the
// defaults in); in a manifest all are there and waves have no selectors.
type Policy struct {
	Waves             []Wave          `json:"waves" strict:"optional"`
	OnHealthFailure   OnHealthFailure `json:"onHealthFailure" strict:"optional"`
	MaxFailures       *Amount         `json:"maxFailures" strict:"optional"`
	FailureThreshold  *Duration       `json:"failureThreshold" strict:"optional"`
	ActivationTimeout *Duration       `json:"activationTimeout" strict:"optional"`
	ConfirmTimeout    *Duration       `json:"confirmTimeout" strict:"optional"`
	RevertWindow      *Duration       `json:"revertWindow" strict:"optional"`
	Offline           *Offline        `json:"offline" strict:"optional"`
	Reboot            *Reboot         `json:"reboot" strict:"optional"`
	Preflight         string          `json:"preflight" strict:"optional"` // off | report | require
	IgnoreWindows     bool            `json:"ignoreWindows" strict:"optional"`
}

// Wave is a part of a rollout's hosts that goes together.
type Wave struct {
	Selector *Selector `json:"selector,omitzero"`
	Soak     Duration  `json:"soak" strict:"optional"`
	Approval bool      `json:"approval" strict:"optional"`
}

// Offline says what becomes of a host that has not been heard for After: skip or wait.
type Offline struct {
	After  *Duration `json:"after" strict:"optional"`
	Action string    `json:"action" strict:"optional"`
}

// Reboot is the reboot part of a policy: mode never or window, and the components whose change
// must not be switched live.
type Reboot struct {
	Mode string   `json:"mode" strict:"optional"`
	For  []string `json:"for" strict:"optional"`
}

// Selector picks hosts. Exactly one field is set.
type Selector struct {
	Tags    []string   `json:"tags,omitempty"`
	TagsAny []string   `json:"tagsAny,omitempty"`
	Hosts   []string   `json:"hosts,omitempty"`
	Channel string     `json:"channel,omitempty"`
	All     bool       `json:"all,omitzero"`
	Not     *Selector  `json:"not,omitzero"`
	And     []Selector `json:"and,omitempty"`
}

// Edge orders two hosts of one channel, or two channels: After goes once Before is done.
type Edge struct {
	Before string `json:"before"`
	After  string `json:"after"`
	Reason string `json:"reason" strict:"optional"`
}

// Budget caps how many of the hosts that Selector matches may be disrupted at once.
type Budget struct {
	Name        string   `json:"name"`
	Selector    Selector `json:"selector"`
	MaxInFlight Amount   `json:"maxInFlight"`
}

// Manifest is the signed plan of one rollout, frozen for its life.
type Manifest struct {
	SchemaVersion      int                 `json:"schemaVersion"`
	RolloutID          string              `json:"rolloutId"`
	Channel            string              `json:"channel"`
	Ref                string              `json:"ref"`
	Sequence           int64               `json:"sequence"`
	ReleasedAt         time.Time           `json:"releasedAt"`
	SignedAt           time.Time           `json:"signedAt"`
	FreshnessWindow    Duration            `json:"freshnessWindow"`
	FleetDigest        string              `json:"fleetDigest"`
	PolicyName         string              `json:"policyName"`
	Policy             Policy              `json:"policy"`
	MaintenanceWindows []MaintenanceWindow `json:"maintenanceWindows"`
	Freezes            []Freeze            `json:"freezes"`
	HostSet            HostSet             `json:"hostSet"`
	DisruptionBudgets  []ManifestBudget    `json:"disruptionBudgets"`
	ChannelAfter       []string            `json:"channelAfter"`
}

// HostSet commits a manifest to its hosts.jsonl.
type HostSet struct {
	Size       int64  `json:"size"`
	SHA256     string `json:"sha256"`
	MerkleRoot string `json:"merkleRoot"` // base64, 32 bytes
}

// ManifestBudget is a budget with its cap resolved to a number of hosts.
type ManifestBudget struct {
	Name        string `json:"name"`
	MaxInFlight int    `json:"maxInFlight"`
}

// HostLine is one line of hosts.jsonl.
type HostLine struct {
	Hostname string   `json:"hostname"`
	Wave     int      `json:"wave"`
	Closure  string   `json:"closure"`
	After    []string `json:"after,omitempty"`
	Budgets  []int    `json:"budgets,omitempty"` // indexes into Manifest.DisruptionBudgets
}

// Revocations lists certificates and tokens that are no longer good.
type Revocations struct {
	SchemaVersion int               `json:"schemaVersion"`
	SignedAt      time.Time         `json:"signedAt"`
	Sequence      int64             `json:"sequence"`
	Hosts         []RevokedHost     `json:"hosts"`
	Operators     []RevokedOperator `json:"operators"`
	Tokens        []RevokedToken    `json:"tokens"`
}

// RevokedHost revokes a host's certificates issued before a time.
type RevokedHost struct {
	Hostname                 string    `json:"hostname"`
	CertificatesIssuedBefore time.Time `json:"certificatesIssuedBefore"`
	Reason                   string    `json:"reason" strict:"optional"`
}

// RevokedOperator revokes an operator's certificates issued before a time.
type RevokedOperator struct {
	Name                     string    `json:"name"`
	CertificatesIssuedBefore time.Time `json:"certificatesIssuedBefore"`
	Reason                   string    `json:"reason" strict:"optional"`
}

// RevokedToken revokes an enrollment token for ever.
type RevokedToken struct {
	Nonce  string `json:"nonce"`
	Reason string `json:"reason" strict:"optional"`
}

// EnrollmentToken lets one host get its first certificate, or its next when the old one ran out.
type EnrollmentToken struct {
	SchemaVersion   int        `json:"schemaVersion"`
	Hostname        string     `json:"hostname"`
	Nonce           string     `json:"nonce"` // 32 hex characters
	IssuedAt        time.Time  `json:"issuedAt"`
	ExpiresAt       *time.Time `json:"expiresAt"`
	PublicKeySHA256 string     `json:"publicKeySha256,omitzero"`
}

// HealthChecks is health-checks.json: a host's own probes.
type HealthChecks struct {
	SchemaVersion int     `json:"schemaVersion"`
	Probes        []Probe `json:"probes"`
}

// Probe kinds and modes.
const (
	ProbeHTTP     = "http"
	ProbeTCP      = "tcp"
	ProbeExec     = "exec"
	ProbeSystemd  = "systemd"
	ProbeEvidence = "evidence"

	ModeEnforce  = "enforce"
	ModeObserve  = "observe"
	ModeDisabled = "disabled"
)

// Probe is one health check; which fields matter depends on Kind.
type Probe struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	Mode     string   `json:"mode"`
	Interval Duration `json:"interval"`
	Timeout  Duration `json:"timeout" strict:"optional"` // may be left out of evidence only

	URL          string `json:"url,omitzero"`          // http
	ExpectStatus int    `json:"expectStatus,omitzero"` // http, 200 when left out
	BodyContains string `json:"bodyContains,omitzero"` // http

	Address string `json:"address,omitzero"` // tcp

	Command        []string `json:"command,omitempty"`       // exec
	ExpectExitCode int      `json:"expectExitCode,omitzero"` // exec

	MaxFailedUnits int `json:"maxFailedUnits,omitzero"` // systemd

	Framework string `json:"framework,omitzero"` // evidence
	Path      string `json:"path,omitzero"`      // evidence
}
