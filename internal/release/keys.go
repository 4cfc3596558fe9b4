package release

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"nixfleet.dev/nixfleet/internal/trust"
)

// maxKeyFile is the cap on a key file.
const maxKeyFile = 64 << 10

// LoadKey reads a signing key from a file: an unencrypted PKCS#8 private key in PEM, Ed25519 or ECDSA
// P-256. It refuses a file that others than its owner may read.
func LoadKey(path string) (*trust.KeySigner, error) {
	if strings.Contains(path, ":") && !strings.Contains(path, "/") || strings.Contains(path, "://") {
		return nil, fmt.Errorf("key %q is a URI; this nixfleet signs with key files", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the key: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the key: %w", err)
	}
	if mode := info.Mode(); mode.IsRegular() && mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key %s can be read by others than its owner (mode %04o); run: chmod 600 %s", path, mode.Perm(), path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	if err == nil && len(data) > maxKeyFile {
		err = errors.New("is too large for a key")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key %s: %w", path, err)
	}
	key, err := trust.ParsePrivateKeyPEM(data)
	if err != nil {
		return nil, fmt.Errorf("key %s is %w; make one with: openssl genpkey -algorithm ed25519 -out FILE", path, err)
	}
	return key, nil
}
