package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/release/bootstrap"
)

func newToken(app *App) *cobra.Command {
	return group("token", "Enrollment tokens, by which hosts get their certificates", newTokenMint(app))
}

// minted is what token mint prints with --json.
type minted struct {
	Hostname  string         `json:"hostname"`
	Nonce     string         `json:"nonce"`
	ExpiresAt *time.Time     `json:"expiresAt"`
	Token     jsontext.Value `json:"token"`
}

func newTokenMint(app *App) *cobra.Command {
	var opts release.TokenOptions
	var keyFile, expires, output string
	cmd := &cobra.Command{
		Use:   "mint",
		Short: "Mint the token by which one host enrols",
		Long: "Prints a token with which one host gets its certificate. It is good for an hour and one key, unless said\n" +
			"otherwise. Bound to the host's key by --public-key-sha256 it is no secret, may have no end (--expires\n" +
			"never), and also brings a host back whose certificate ran out.",
		Args: noArgs,
		Example: examples("nixfleet token mint --host web-01 --key keys/enrollment.pem --output token.json",
			"nixfleet token mint --host web-01 --key keys/enrollment.pem --expires never --public-key-sha256 9f86d0…"),
		RunE: func(*cobra.Command, []string) error {
			life, err := parseExpires(expires)
			if err != nil {
				return err
			}
			signer, err := release.LoadKey(keyFile)
			if err != nil {
				return err
			}
			opts.Signer, opts.Now, opts.Expires = signer, app.Clock.Now(), life
			token, envelope, err := release.MintToken(opts)
			if err != nil {
				return usageError{err}
			}
			if output != "" {
				if err := bootstrap.WriteSecret(output, append(envelope, '\n')); err != nil {
					return err
				}
			}
			found := minted{token.Hostname, token.Nonce, token.ExpiresAt, envelope}
			return app.print(found, func(w io.Writer) error {
				if output != "" {
					_, err := fmt.Fprintf(app.Stderr, "The token of %s is in %s: nonce %s, %s.\n", token.Hostname, output, token.Nonce, ending(token.ExpiresAt))
					return err
				}
				_, err := fmt.Fprintf(w, "%s\n", envelope)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&opts.Hostname, "host", "", "the host that may enrol")
	cmd.Flags().StringVar(&keyFile, "key", "", "the enrollment key (PKCS#8 PEM, 0600)")
	cmd.Flags().StringVar(&expires, "expires", release.DefaultTokenLife.String(), "how long it is good, or never")
	cmd.Flags().StringVar(&opts.PublicKeySHA256, "public-key-sha256", "", "bind it to the key with this SHA-256 of its DER SPKI")
	cmd.Flags().StringVar(&output, "output", "", "write the token to this new file, which only you can read")
	noEnv(cmd, "key") // NIXFLEET_KEY is the operator's TLS key
	noEnv(cmd, "output")
	required(cmd, "host", "key")
	return app.addJSON(cmd)
}

func ending(expires *time.Time) string {
	if expires == nil {
		return "without an end"
	}
	return "good until " + stamp(*expires)
}

func parseExpires(s string) (time.Duration, error) {
	if s == "never" {
		return 0, nil
	}
	life, err := time.ParseDuration(s)
	if err != nil || life <= 0 {
		return 0, usagef("--expires %q is neither a duration such as 1h nor never", s)
	}
	return life, nil
}
