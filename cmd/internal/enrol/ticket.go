package enrol

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// ticketLife is how long a host has to ask for its certificate after it has spoken from an address.
const ticketLife = 5 * time.Minute

// tickets says by which addresses the holder of a key has spoken to the server. The secret ends with the process.
type tickets struct{ secret [sha256.Size]byte }

func newTickets() *tickets {
	t := new(tickets)
	_, _ = rand.Read(t.secret[:]) // never fails
	return t
}

// issue makes a ticket for who has the key and was seen at an address.
func (t *tickets) issue(key []byte, from netip.Addr, now time.Time) string {
	said := fmt.Sprintf("%s %d", from, now.Add(ticketLife).Unix())
	return said + " " + base64.RawURLEncoding.EncodeToString(t.mac(key, said))
}

// address is the one that a ticket is for, if it is one for the key and has not ended.
func (t *tickets) address(key []byte, ticket string, now time.Time) (netip.Addr, bool) {
	end := strings.LastIndexByte(ticket, ' ')
	if end < 0 {
		return netip.Addr{}, false
	}
	mac, err := base64.RawURLEncoding.DecodeString(ticket[end+1:])
	if err != nil || !hmac.Equal(mac, t.mac(key, ticket[:end])) {
		return netip.Addr{}, false
	}
	address, until, _ := strings.Cut(ticket[:end], " ") // as issue has written it
	ip, err := netip.ParseAddr(address)
	unix, err2 := strconv.ParseInt(until, 10, 64)
	return ip, err == nil && err2 == nil && now.Before(time.Unix(unix, 0))
}

func (t *tickets) mac(key []byte, said string) []byte {
	m := hmac.New(sha256.New, t.secret[:])
	fmt.Fprintf(m, "%d %s %s", len(key), key, said)
	return m.Sum(nil)
}
