package kernel

import (
	"crypto/ecdh"
	"testing"
)

// Keys that wireguard shakes no hands with are refused by name, not sought for ever.
func TestKeysOfLowOrder(t *testing.T) {
	t.Parallel()
	own, err := ecdh.X25519().GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range lowOrder {
		raw, err := parseKey(text)
		if err != nil {
			t.Fatal(text, err)
		}
		public, err := ecdh.X25519().NewPublicKey(raw[:])
		if err != nil {
			t.Fatal(text, err)
		}
		if _, err := own.ECDH(public); err == nil {
			t.Errorf("%s is a key as others", text)
		}
		if _, err := ParseWGKey(text); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
	if _, err := ParseWGKey(newSecret().Public().String()); err != nil {
		t.Error(err)
	}
}
