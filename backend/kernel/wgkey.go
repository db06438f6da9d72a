package kernel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// WGKey is the public key of a wireguard link.
type WGKey [32]byte

// String is the key in base64, as wg shows it.
func (k WGKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// ParseWGKey reads a public key in base64: 44 characters.
func ParseWGKey(text string) (WGKey, error) {
	key, err := parseKey(text)
	if err == nil && key == [32]byte{} {
		err = errors.New("it is all zeros")
	} else if err == nil && slices.Contains(lowOrder, WGKey(key).String()) {
		err = errors.New("it is of low order: no host has it")
	}
	if err != nil {
		return WGKey{}, fmt.Errorf("%.60q is no wireguard key: %w", text, err)
	}
	return key, nil
}

// lowOrder are the public keys, in base64, with which wireguard shakes no hands: points of low order (RFC 7748, 6.1).
var lowOrder = []string{
	"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
	"X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=", "7P///////////////////////////////////////38=",
	"7f///////////////////////////////////////38=", "7v///////////////////////////////////////38=",
}

// Secret is a private or preshared key of wireguard. Nothing prints it; Base64 does, for files that nobody else reads.
type Secret [32]byte

// ParseSecret reads a key in base64: 44 characters. Its error does not show what is in the text.
func ParseSecret(text string) (Secret, error) {
	key, err := parseKey(text)
	if err != nil {
		return Secret{}, fmt.Errorf("no wireguard key: %w", err)
	}
	return key, nil
}

func parseKey(text string) (key [32]byte, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(text))
	if err != nil || len(raw) != len(key) {
		return key, errors.New("it must be 32 bytes in base64, which are 44 characters (wg genkey, wg genpsk)")
	}
	return [32]byte(raw), nil
}

// Base64 is the key as files have it.
func (s Secret) Base64() string { return base64.StdEncoding.EncodeToString(s[:]) }

// Public is the public key of a private one. The zero Secret has none: the zero WGKey.
func (s Secret) Public() WGKey {
	if s == (Secret{}) {
		return WGKey{}
	}
	key, err := ecdh.X25519().NewPrivateKey(s[:])
	if err != nil {
		return WGKey{} // it has 32 bytes: there is no error
	}
	return WGKey(key.PublicKey().Bytes())
}

func (s Secret) String() string {
	if s == (Secret{}) {
		return ""
	}
	return "(secret)"
}

// GoString implements fmt.GoStringer, without the key.
func (s Secret) GoString() string { return "kernel.Secret{" + s.String() + "}" }

// Format implements fmt.Formatter: no verb shows the key.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue implements slog.LogValuer, without the key.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements encoding.TextMarshaler, without the key.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// clamped is a private key as curve25519 uses it, and as wireguard shows it.
func (s Secret) clamped() Secret {
	if s != (Secret{}) {
		s[0] &= 248
		s[31] = s[31]&127 | 64
	}
	return s
}

// NewSecret makes a private key, at random.
func NewSecret() (s Secret) {
	rand.Read(s[:])    // never fails
	return s.clamped() // as X25519 would, so that all tools show one text for one key (RFC 7748, 5)
}
