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
		"the word is hunter2.":                                                    "the word is [removed].",
		"etcd said: user root, pass hunter2":                                      "etcd said: user root, pass [removed]",
		"http://root:geheim@192.0.2.1:2379/x":                                     "http://[removed]192.0.2.1:2379/x",
		"https://token@192.0.2.1":                                                 "https://[removed]192.0.2.1",
		`{"Backend":{"Type":"ipsec","PSK":"a\"b c"}}`:                             `{"Backend":{"Type":"ipsec","PSK":[removed]}}`,
		"psk: 'a b' # x":                                                          "psk: [removed] # x",
		"etcd-password: geheim":                                                   "etcd-password: [removed]",
		"PresharedKey = abc=\nAllowedIPs = 10.5.1.0/24":                           "PresharedKey = [removed]\nAllowedIPs = 10.5.1.0/24",
		`{"Type":"wireguard","PSK":"O7RY=","MTU":1400}`:                           `{"Type":"wireguard","PSK":[removed],"MTU":1400}`,
		"PrivateKey = abc=":                                                       "PrivateKey = [removed]",
		"--token geheim --iface eth0":                                             "--token [removed] --iface eth0",
		"Authorization: Basic cm9vdDpw\r\nx: y":                                   "Authorization: [removed]\r\nx: y",
		"a\n-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nb": "a\n-----BEGIN EC PRIVATE KEY-----[removed]\nb",
		"-----BEGIN PRIVATE KEY-----\nMHc":                                        "-----BEGIN PRIVATE KEY-----[removed]",
		"overlayctl join 192.0.2.1 --token ov1.abc.def.ghi":                       "overlayctl join 192.0.2.1 --token [removed]",
		"argv: ov1.abc.def.ghi, x":                                                "argv: ov1.[removed], x",
		`"psk": ["a", "b"], "x": 1`:                                               `"psk": [removed], "x": 1`,
		"  psk: a,b;c}d\nx: y":                                                    "  psk: [removed]\nx: y",
		`psk='it''s' x`:                                                           `psk=[removed] x`,
		`{"Secret_Key":12,"x":1}`:                                                 `{"Secret_Key":[removed],"x":1}`,
		"token password: geheim":                                                  "token [removed] [removed]",
		// Cut off.
		"config: {\"PSK\":\"geh\nx": "config: {\"PSK\":[removed]\nx",
		// A string within a string, and within another one.
		`msg="{\"PSK\":\"a\\\"b c\",\"x\":1}" y=z`:                   `msg="{\"PSK\":[removed],\"x\":1}" y=z`,
		`{"m":"{\"m\":\"{\\\"PSK\\\": \\\"a b\\\",\\\"x\\\":1}\"}"}`: `{"m":"{\"m\":\"{\\\"PSK\\\": [removed],\\\"x\\\":1}\"}"}`,
		`{"m":"token=abc\ndef","x":"a"}`:                             `{"m":"token=[removed]","x":"a"}`,
		`"{\"PSK\":\"ends in \\\\\",\"x\":1}"`:                       `"{\"PSK\":[removed],\"x\":1}"`,
		`"{\"Authorization\":\"Basic cm9v\"}`:                        `"{\"Authorization\":[removed]`,
		// Passwords of URLs that nobody escaped, or that somebody did.
		"http://root:p@ss:w/o?rd@192.0.2.1:2379/x":                         "http://[removed]192.0.2.1:2379/x",
		"http://root:p%40s%2Fs@192.0.2.1 is away":                          "http://[removed]192.0.2.1 is away",
		"http://root:it's#1&[a]@192.0.2.1":                                 "http://[removed]192.0.2.1",
		"http://u:a@h1:1,http://h2:1,https://u:b@c@h3:1":                   "http://[removed]h1:1,http://h2:1,https://[removed]h3:1",
		`["http://u:a b@h1:1","http://h2"]`:                                `["http://[removed]h1:1","http://h2"]`,
		`{"m":"{\"etcd\":\"http:\\/\\/u:a\\\"b@c@h1\",\"mail\":\"a@b\"}"}`: `{"m":"{\"etcd\":\"http:\\/\\/[removed]h1\",\"mail\":\"a@b\"}"}`,
		"etcd-endpoints: ['http://u:p:/@h1:1','http://u:?@h2']":            "etcd-endpoints: ['http://[removed]h1:1','http://[removed]h2']",
		// What is none.
		"etcd-password-file: /etc/overlayd/etcd-password":             "etcd-password-file: /etc/overlayd/etcd-password",
		"etcd-keyfile: /etc/overlayd/host.key":                        "etcd-keyfile: /etc/overlayd/host.key",
		"http://192.0.2.1:2379":                                       "http://192.0.2.1:2379",
		`{"etcd":"http://192.0.2.1:2379","mail":"a@b"}`:               `{"etcd":"http://192.0.2.1:2379","mail":"a@b"}`,
		"see http://192.0.2.1/ or ask a@b":                            "see http://192.0.2.1/ or ask a@b",
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
