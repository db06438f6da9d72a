package certs

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// caName is the CA's, beside the hosts' names.
const caName = "ca"

// Errors that callers branch on.
var (
	// ErrExists says that there is a key already. No key is ever overwritten: what was signed by it, or for it, would
	// be worth nothing.
	ErrExists = errors.New("is there already")
	// ErrNoCA says that the directory has no CA.
	ErrNoCA = errors.New("no CA")
)

// Dir is a directory of certificates: ca.crt and ca.key, and NAME.crt and NAME.key for each host.
type Dir struct {
	Path string
	Now  func() time.Time
}

// Files are the names of the files that belong to name.
func (d Dir) Files(name string) (cert, key string) {
	base := filepath.Join(d.Path, name)
	return base + ".crt", base + ".key"
}

// Init makes the directory, with mode 0700, and a CA in it. The error wraps ErrExists if it has a key.
func (d Dir) Init() (*x509.Certificate, error) {
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return nil, err
	}
	return d.create(caName, caTemplate(), pair{}, caLife)
}

// Issue makes a key and a certificate for a host, valid for life, or as long as the CA if that is shorter. The error
// wraps ErrExists if the host has a key, and ErrNoCA if there is no CA.
func (d Dir) Issue(name string, n Names, life time.Duration) (*x509.Certificate, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	ca, err := d.ca()
	if err != nil {
		return nil, err
	}
	return d.create(name, hostTemplate(name, n), ca, life)
}

// Renew replaces a certificate, a host's or the CA's own, by one that says the same and is valid from now on. The key
// stays, so that what a CA has signed stays valid, and a host needs only the new certificate.
func (d Dir) Renew(name string, life time.Duration) (*x509.Certificate, error) {
	ca, err := d.ca()
	if err != nil {
		return nil, err
	}
	old := ca
	if name == caName {
		ca, life = pair{key: old.key}, caLife
	} else {
		if err := checkName(name); err != nil {
			return nil, err
		}
		if old, err = d.load(name); err != nil {
			return nil, err
		}
	}
	template := *old.cert // x509 takes from it what a certificate says, and not by whom or in which bytes
	cert, err := sign(&template, old.key.Public(), ca, d.Now(), life)
	if err != nil {
		return nil, err
	}
	path, _ := d.Files(name)
	return cert, renameio.WriteFile(path, pemOf("CERTIFICATE", cert.Raw), 0o644)
}

// List returns all certificates by file name. What is no certificate is an error.
func (d Dir) List() ([]*x509.Certificate, error) {
	entries, err := os.ReadDir(d.Path) // sorted
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".crt") {
			continue
		}
		cert, err := Read(filepath.Join(d.Path, e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, cert)
	}
	return all, nil
}

// Read reads the first certificate of a file.
func Read(path string) (*x509.Certificate, error) {
	der, err := readPEM(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

func (d Dir) create(name string, template *x509.Certificate, ca pair, life time.Duration) (*x509.Certificate, error) {
	certFile, keyFile := d.Files(name)
	for _, path := range []string{keyFile, certFile} {
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("%s %w", path, ErrExists)
		}
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	if ca.key == nil { // it is the CA itself
		ca.key = key
	}
	cert, err := sign(template, key.Public(), ca, d.Now(), life)
	if err != nil {
		return nil, err
	}
	private, err := KeyPEM(key)
	if err != nil {
		return nil, err
	}
	if err := writeNew(keyFile, private, 0o600); err != nil {
		return nil, err
	}
	if err := writeNew(certFile, pemOf("CERTIFICATE", cert.Raw), 0o644); err != nil {
		return nil, errors.Join(err, os.Remove(keyFile)) // half a pair would stand in the way
	}
	return cert, nil
}

// writeNew writes a file that must not be there: O_EXCL, so that of two at once only one makes it.
func writeNew(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s %w", path, ErrExists)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func (d Dir) ca() (pair, error) {
	ca, err := d.load(caName)
	if errors.Is(err, fs.ErrNotExist) {
		return pair{}, fmt.Errorf("%w in %s: make one with \"overlayctl certs init %s\"", ErrNoCA, d.Path, d.Path)
	}
	if err == nil && !ca.cert.IsCA {
		path, _ := d.Files(caName)
		return pair{}, fmt.Errorf("%s is no CA's certificate", path)
	}
	return ca, err
}

func (d Dir) load(name string) (pair, error) {
	certFile, keyFile := d.Files(name)
	cert, err := Read(certFile)
	if err != nil {
		return pair{}, err
	}
	key, err := ReadKey(keyFile)
	if err == nil && !key.PublicKey.Equal(cert.PublicKey) {
		err = fmt.Errorf("%s is not the key of %s", keyFile, certFile)
	}
	return pair{cert, key}, err
}

// ReadKey reads the first key of a file.
func ReadKey(path string) (*ecdsa.PrivateKey, error) {
	der, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: not a PKCS #8 key", path)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: not a key of ECDSA", path)
	}
	return key, nil
}

func readPEM(path, kind string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("%s is empty: bring it back from a backup, or remove the certificate and its key, and make both anew", path)
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind {
			return block.Bytes, nil
		}
	}
	return nil, fmt.Errorf("%s: no %s in it", path, strings.ToLower(kind))
}

// KeyPEM is a key as a file holds it (PKCS #8).
func KeyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pemOf("PRIVATE KEY", der), err
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
