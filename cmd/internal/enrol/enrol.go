// Package enrol lets hosts join a network: a host shows a token, and gets a certificate for its own key from one of the hosts
// that run etcd, which sign. Later it shows that certificate, and gets the next.
//
// Both sides know each other before a secret is sent: the token holds the hash of the CA's key, and the server's certificate
// must be signed by it, be a member's and name the address that was asked. What a certificate says the server decides:
// the host's id and name once, when it joins, and the addresses from which the host has spoken to the server. For each
// other address than that of the request itself it has a ticket, which the server gives to who speaks from there and which is
// good for one key only. Nothing is dialled that a client names.
package enrol

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/overlayd/overlayd/subnet/who"
)

const (
	// DefaultPort is where members let hosts join and renew, beside etcd's 2379 and 2380.
	DefaultPort = "9418"
	// Life is how long a host's certificate is valid: one that is stolen is worth something for so long, or until the host
	// is removed.
	Life = 30 * 24 * time.Hour
	// maxBody bounds a request and an answer, in bytes. A network config is the largest thing in them.
	maxBody = 64 << 10
)

// credential is a token as it is shown, but for the CA's hash.
type credential struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
}

// hello asks how the network is, and for a ticket. Without a token the client's certificate says who asks.
type hello struct {
	Token *credential `json:"token,omitempty"`
	Key   []byte      `json:"key"` // fingerprint of the public key that the ticket is for
}

// Greeting is how the network is.
type Greeting struct {
	Address   netip.Addr      `json:"address"` // that the host was seen to speak from
	Now       time.Time       `json:"now"`     // by the server's clock
	Endpoints []string        `json:"endpoints"`
	Prefix    string          `json:"prefix"`
	Network   json.RawMessage `json:"network,omitempty"` // none: it has none yet
	Ticket    string          `json:"ticket"`
}

// joinRequest asks for a host's first certificate, or for one after the last has ended.
type joinRequest struct {
	Token   credential `json:"token"`
	Host    string     `json:"host"`
	Name    string     `json:"name"`
	Request []byte     `json:"request"` // PKCS #10
	Tickets []string   `json:"tickets"`
}

// renewRequest asks for the next certificate of who shows the last. It names nobody.
type renewRequest struct {
	Request []byte   `json:"request"`
	Tickets []string `json:"tickets"`
}

// issued is the answer to both, as DER.
type issued struct {
	Certificate []byte `json:"certificate"`
	CA          []byte `json:"ca"`
}

// refused is what a server says instead.
type refused struct {
	Error string `json:"error"`
}

// LoadPair reads a file with a certificate and its key, which may be replaced at any moment: it is opened once.
func LoadPair(file string) (tls.Certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return pair, fmt.Errorf("%s: %w", file, err)
	}
	return pair, nil
}

// holder is whom a certificate names; nobody, if that makes no sense.
func holder(cert *x509.Certificate) who.Who {
	w, _ := who.Parse(cert)
	return w
}
