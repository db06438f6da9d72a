package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/overlayd/overlayd/subnet/who"
)

// Authority is a CA that decides alone what the certificates say that it signs.
type Authority struct{ ca pair }

// NewAuthority makes a CA, valid from now on.
func NewAuthority(now time.Time) (Authority, error) {
	key, err := NewKey()
	if err != nil {
		return Authority{}, err
	}
	cert, err := sign(caTemplate(), key.Public(), pair{key: key}, now, caLife)
	return Authority{pair{cert, key}}, err
}

// ReadAuthority reads the file that [Authority.Bundle] was written to. The error wraps [io/fs.ErrNotExist] if there is none.
func ReadAuthority(path string) (Authority, error) {
	cert, err := Read(path)
	if err != nil {
		return Authority{}, err
	}
	key, err := ReadKey(path)
	switch {
	case err != nil:
		return Authority{}, err
	case !cert.IsCA:
		return Authority{}, fmt.Errorf("%s is no CA's certificate", path)
	case !key.PublicKey.Equal(cert.PublicKey):
		return Authority{}, fmt.Errorf("%s: the key is not the certificate's", path)
	}
	return Authority{pair{cert, key}}, nil
}

// Certificate is the CA's own.
func (a Authority) Certificate() *x509.Certificate { return a.ca.cert }

// Bundle is one file with the CA's certificate and its key.
func (a Authority) Bundle() ([]byte, error) { return Bundle(a.ca.cert, a.ca.key) }

// Sign makes a certificate for a public key, valid for life from now on. What it says is w and nothing else. Who is no
// member serves nobody, so that the certificate is good for a client only.
func (a Authority) Sign(public *ecdsa.PublicKey, w who.Who, now time.Time, life time.Duration) (*x509.Certificate, error) {
	if err := checkName(w.Name); err != nil {
		return nil, err
	}
	t := hostTemplate(w.Name, Names{IPs: w.IPs})
	if !w.Member {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		t.DNSNames, t.IPAddresses = nil, nil
		for _, ip := range w.IPs {
			t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
		}
	}
	t.URIs = w.URIs()
	return sign(t, public, a.ca, now, life)
}

// Issue makes a key, and a certificate for it as [Authority.Sign] does, as one file.
func (a Authority) Issue(w who.Who, now time.Time, life time.Duration) ([]byte, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	cert, err := a.Sign(&key.PublicKey, w, now, life)
	if err != nil {
		return nil, err
	}
	return Bundle(cert, key)
}

// Bundle is one file with a certificate and its key, so that the two fit together whenever it is read.
func Bundle(cert *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	private, err := KeyPEM(key)
	return slices.Concat(PEM(cert), private), err
}

// PEM is a certificate as a file holds it.
func PEM(cert *x509.Certificate) []byte { return pemOf("CERTIFICATE", cert.Raw) }

// Fingerprint names the key of a certificate: what signs with it is the same CA, whatever its certificate says.
func Fingerprint(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// NewRequest is a request for a certificate for a key (PKCS #10, DER) that says nothing else.
func NewRequest(key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}}, key)
}

// RequestedKey is the public key of a request, if who has made it has the private one. Nothing else is read of it.
func RequestedKey(request []byte) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, errors.New("the certificate request is none")
	}
	key, ok := parsed.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the certificate request must be for a key of ECDSA P-256")
	}
	if err := parsed.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed with its key: %w", err)
	}
	return key, nil
}
