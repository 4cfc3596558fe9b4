package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/release/bootstrap"
)

func newCert(app *App) *cobra.Command {
	return group("cert", "Issue certificates with the fleet's root key", newCertOperator(app), newCertServer(app))
}

// issuing is the flags of commands that issue certificates.
type issuing struct {
	dir, out string
	caCert   string
	caKey    string
	life     time.Duration
}

func (i *issuing) flags(cmd *cobra.Command, life time.Duration) {
	cmd.Flags().StringVar(&i.dir, "dir", ".", "the fleet's directory, which nixfleet init made")
	cmd.Flags().StringVar(&i.caCert, "ca-cert", "", "the root's certificate (default ca/ca.pem in the fleet's directory)")
	cmd.Flags().StringVar(&i.caKey, "ca-key", "", "the root's key (default ca/ca.key in the fleet's directory)")
	cmd.Flags().StringVar(&i.out, "out", "", "the folder for the certificate and its key (default the current one)")
	cmd.Flags().DurationVar(&i.life, "lifetime", life, "how long the certificate is good")
}

func (i *issuing) authority() (*bootstrap.Authority, error) {
	layout, err := bootstrap.At(i.dir)
	if err != nil {
		return nil, err
	}
	cert, key := layout.CACert, layout.CAKey
	if i.caCert != "" {
		cert = i.caCert
	}
	if i.caKey != "" {
		key = i.caKey
	}
	return bootstrap.LoadAuthority(cert, key)
}

// issuedFiles is what cert prints with --json.
type issuedFiles struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// write writes a certificate and its key as name.pem and name.key.
func (i *issuing) write(app *App, name string, issued bootstrap.Issued) error {
	files := issuedFiles{filepath.Join(i.out, name+".pem"), filepath.Join(i.out, name+".key")}
	if err := bootstrap.WritePair(files.Cert, files.Key, issued); err != nil {
		return err
	}
	return app.print(files, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s\n%s\n", files.Cert, files.Key)
		return err
	})
}

func newCertOperator(app *App) *cobra.Command {
	var i issuing
	cmd := &cobra.Command{
		Use:   "operator NAME",
		Short: "Issue the certificate of a person or program that operates the fleet",
		Args:  takesArgs,
		Example: examples("nixfleet cert operator alice --dir ./fleet",
			"nixfleet cert operator grafana --dir ./fleet --out ./grafana --lifetime 720h"),
		RunE: func(_ *cobra.Command, args []string) error {
			authority, err := i.authority()
			if err != nil {
				return err
			}
			issued, err := authority.IssueOperator(args[0], app.Clock.Now(), i.life)
			if errors.Is(err, bootstrap.ErrOption) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			return i.write(app, args[0], issued)
		},
	}
	i.flags(cmd, bootstrap.OperatorLife)
	return app.addJSON(cmd)
}

func newCertServer(app *App) *cobra.Command {
	var i issuing
	cmd := &cobra.Command{
		Use:   "server NAME...",
		Short: "Issue the certificate of a control plane for its DNS names and IP addresses",
		Args:  takesArgs,
		Example: examples("nixfleet cert server cp.fleet.example --dir ./fleet",
			"nixfleet cert server cp.fleet.example 10.0.0.5 --ca-cert ca.pem --ca-key ca.key"),
		RunE: func(_ *cobra.Command, args []string) error {
			authority, err := i.authority()
			if err != nil {
				return err
			}
			issued, err := authority.IssueServer(args, app.Clock.Now(), i.life)
			if errors.Is(err, bootstrap.ErrOption) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			return i.write(app, args[0], issued)
		},
	}
	i.flags(cmd, bootstrap.ServerLife)
	return app.addJSON(cmd)
}
