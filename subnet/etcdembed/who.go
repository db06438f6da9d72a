package etcdembed

import (
	"crypto/x509"

	"github.com/overlayd/overlayd/subnet/who"
)

// Who is whom a certificate names.
type Who = who.Who

// ParseWho is [who.Parse].
func ParseWho(c *x509.Certificate) (Who, error) { return who.Parse(c) }
