package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// load loads the keys to sign with, and trust.json, which must know one of them.
func (k *keyring) load() ([]trust.Signer, *trust.Root, error) {
	if len(k.keyFiles) == 0 {
		return nil, nil, usagef("name a key to sign with: --key FILE")
	}
	signers := []trust.Signer{}
	for _, path := range k.keyFiles {
		signer, err := release.LoadKey(path)
		if err != nil {
			return nil, nil, err
		}
		signers = append(signers, signer)
	}
	root, err := k.root()
	if err != nil {
		return nil, nil, err
	}
	known := func(s trust.Signer) bool { return root.ReleaseRule().Has(s.KeyID()) }
	if !slices.ContainsFunc(signers, known) {
		return nil, nil, fmt.Errorf("%s is not a release key of %s: nothing it signs would count; add its public half there (openssl pkey -in %[1]s -pubout), or sign with another key",
			k.keyFiles[0], k.trustPath())
	}
	return signers, root, nil
}

// root reads trust.json: the one that was named, or the one that nixfleet init put beside the keys.
func (k *keyring) root() (*trust.Root, error) {
	path := k.trustPath()
	if path == "" {
		return nil, usagef("what readers trust is needed to check the release before it is published; name it: --trust trust.json")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading what readers trust: %w", err)
	}
	return trust.ParseRoot(path, data)
}

func (k *keyring) trustPath() string {
	if k.trustFile != "" {
		return k.trustFile
	}
	return k.besideKeys()
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
