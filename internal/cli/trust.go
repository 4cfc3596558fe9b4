package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/trust"
)

// keyring is the flags of commands that sign: with which keys, and by whose rules.
type keyring struct {
	keyFiles  []string
	trustFile string
}

func (k *keyring) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&k.keyFiles, "key", nil, "a private key to sign with (PKCS#8 PEM, 0600); give it again for each key")
	k.trustFlag(cmd, "what readers trust (default trust.json beside the key, or in the folder above)")
}

func (k *keyring) trustFlag(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVar(&k.trustFile, "trust", "", usage)
}

// signers loads the keys.
func (k *keyring) signers() ([]trust.Signer, error) {
	if len(k.keyFiles) == 0 {
		return nil, usagef("name a key to sign with: --key FILE")
	}
	signers := []trust.Signer{}
	for _, path := range k.keyFiles {
		signer, err := release.LoadKey(path)
		if err != nil {
			return nil, err
		}
		signers = append(signers, signer)
	}
	return signers, nil
}

// root reads trust.json: the one that was named, or the one that nixfleet init put beside the keys.
func (k *keyring) root() (*trust.Root, error) {
	path := k.trustFile
	if path == "" {
		path = k.besideKeys()
	}
	if path == "" {
		return nil, usagef("what readers trust is needed to check the release before it is published; name it: --trust trust.json")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return trust.ParseRoot(path, data)
}

func (k *keyring) besideKeys() string {
	for _, key := range k.keyFiles {
		dir, err := filepath.Abs(filepath.Dir(key))
		if err != nil {
			continue
		}
		for _, candidate := range []string{dir, filepath.Dir(dir)} {
			path := filepath.Join(candidate, "trust.json")
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				return path
			}
		}
	}
	return ""
}

// flakeArgument says whether an argument names a flake's attribute rather than a file.
func flakeArgument(path string) bool {
	if _, err := os.Stat(path); err == nil {
		return false
	}
	return strings.Contains(path, "#")
}
