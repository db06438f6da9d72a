package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestScrub(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("hunter2 x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newScrubber(file)
	for text, want := range map[string]string{
		// Secrets.
		"the word is hunter2.":                        "the word is [removed].",
		"etcd said: user root, pass hunter2":          "etcd said: user root, pass [removed]",
		"http://root:geheim@192.0.2.1:2379/x":         "http://[removed]192.0.2.1:2379/x",
		"https://token@192.0.2.1":                     "https://[removed]192.0.2.1",
		`{"Backend":{"Type":"ipsec","PSK":"a\"b c"}}`: `{"Backend":{"Type":"ipsec","PSK":[removed]}}`,
		"psk: 'a b' # x":                              "psk: [removed] # x",
		"etcd-password: geheim":                       "etcd-password: [removed]",
		"PrivateKey = abc=":                           "PrivateKey = [removed]",
		"--token geheim --iface eth0":                 "--token [removed] --iface eth0",
		"Authorization: Basic cm9vdDpw\r\nx: y":       "Authorization: [removed]\r\nx: y",
		"a\n-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nb": "a\n-----BEGIN EC PRIVATE KEY-----[removed]\nb",
		"-----BEGIN PRIVATE KEY-----\nMHc":                                        "-----BEGIN PRIVATE KEY-----[removed]",
		// What is none.
		"etcd-password-file: /etc/overlayd/etcd-password":             "etcd-password-file: /etc/overlayd/etcd-password",
		"etcd-keyfile: /etc/overlayd/host.key":                        "etcd-keyfile: /etc/overlayd/host.key",
		"http://192.0.2.1:2379":                                       "http://192.0.2.1:2379",
		"10.5.34.0/24 via 10.5.34.0 dev overlay.1":                    "10.5.34.0/24 via 10.5.34.0 dev overlay.1",
		"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----": "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
	} {
		if got := string(s.scrub([]byte(text))); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if got := newScrubber("/nonexistent"); got.known != nil {
		t.Errorf("knows %q of a file that is not there", got.known)
	}
}
