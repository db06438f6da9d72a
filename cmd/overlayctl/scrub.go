package main

import (
	"bytes"
	"os"
	"regexp"
)

// redacted stands where a secret was.
const redacted = "[removed]"

// secrets are the shapes in which secrets appear in configurations and logs. Of each, the group named keep stays, and
// what follows it goes.
var secrets = []*regexp.Regexp{
	// A private key in PEM, also one whose end is cut off.
	regexp.MustCompile(`(?s)(?P<keep>-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`),
	// The user and password of a URL.
	regexp.MustCompile(`(?P<keep>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s"'@]+@`),
	// password: x, "PSK": "x", token=x, --api-key x; not etcd-password-file: x, which is a path.
	regexp.MustCompile(`(?i)(?P<keep>(?:password|passwd|passphrase|secret|token|psk|(?:private|api|access|preshared)[-_]?key)["']?(?:\s*[:=]\s*|\s+))("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}"']+)`),
	// An HTTP header.
	regexp.MustCompile(`(?i)(?P<keep>authorization:\s*)[^\r\n]+`),
}

// scrubber takes secrets out of what leaves the host.
type scrubber struct {
	known [][]byte // secrets whose very words are known
}

// newScrubber learns the words of the password file. Nothing else of the host's secrets is read.
func newScrubber(passwordFile string) scrubber {
	var s scrubber
	if passwordFile == "" {
		return s
	}
	data, err := os.ReadFile(passwordFile)
	if err != nil {
		return s
	}
	for word := range bytes.FieldsSeq(data) {
		if len(word) >= 4 { // shorter ones are part of everything
			s.known = append(s.known, word)
		}
	}
	return s
}

func (s scrubber) scrub(text []byte) []byte {
	for _, word := range s.known {
		text = bytes.ReplaceAll(text, word, []byte(redacted))
	}
	for _, shape := range secrets {
		text = shape.ReplaceAll(text, []byte("${keep}"+redacted))
	}
	return text
}
