package enrol

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"strings"
)

// tokenVersion begins every token, so that a later kind is told from garbage.
const tokenVersion = "ov1"

// errNoToken does not repeat what was given: it may be nearly one.
var errNoToken = errors.New("this is no token: one begins with ov1., and is printed by \"overlayctl init\" and \"overlayctl tokens create\"")

// Token lets a host join. It names the CA, so that who has it trusts nobody in between.
type Token struct {
	CA     [sha256.Size]byte // fingerprint of the CA's key
	ID     string            // names it in etcd
	Secret string
}

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewToken makes a token for the network of a CA. Its secret has 128 random bits or more.
func NewToken(ca [sha256.Size]byte) Token {
	return Token{CA: ca, ID: strings.ToLower(rand.Text()[:8]), Secret: strings.ToLower(rand.Text())}
}

// ParseToken reads what [Token.String] has written, and nothing else.
func ParseToken(text string) (t Token, err error) {
	parts := strings.Split(text, ".")
	if len(parts) != 4 || parts[0] != tokenVersion || !isWord(parts[2]) || !isWord(parts[3]) {
		return Token{}, errNoToken
	}
	ca, err := lowerBase32.DecodeString(parts[1])
	if err != nil || len(ca) != len(t.CA) {
		return Token{}, errNoToken
	}
	t = Token{[sha256.Size]byte(ca), parts[2], parts[3]}
	if t.String() != text {
		return Token{}, errNoToken
	}
	return t, nil
}

// String is the token as people pass it on. It holds the secret.
func (t Token) String() string {
	return strings.Join([]string{tokenVersion, lowerBase32.EncodeToString(t.CA[:]), t.ID, t.Secret}, ".")
}

// hash is what etcd holds of a secret.
func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// isWord says whether s can be an id: it becomes part of a key.
func isWord(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}
