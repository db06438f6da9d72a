package certs

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const year = 365 * 24 * time.Hour

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newDir(t *testing.T) Dir {
	t.Helper()
	return Dir{Path: filepath.Join(t.TempDir(), "pki"), Now: func() time.Time { return start }}
}

// withCA is a directory that has a CA.
func withCA(t *testing.T) Dir {
	t.Helper()
	d := newDir(t)
	if _, err := d.Init(); err != nil {
		t.Fatal(err)
	}
	return d
}

func issue(t *testing.T, d Dir, name string, n Names) *x509.Certificate {
	t.Helper()
	cert, err := d.Issue(name, n, year)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// content is all files of the directory.
func content(t *testing.T, d Dir) map[string]string {
	t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(d.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(d.Path, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(data)
	}
	return files
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		prepare func(t *testing.T, d Dir)
		do      func(d Dir) error
		want    string
		is      error
	}{
		"no CA":        {do: func(d Dir) error { _, err := d.Issue("b", Names{}, year); return err }, want: "overlayctl certs init", is: ErrNoCA},
		"renew, no CA": {do: func(d Dir) error { _, err := d.Renew("b", year); return err }, want: "overlayctl certs init", is: ErrNoCA},
		"a second CA":  {do: func(d Dir) error { _, err := d.Init(); return err }, prepare: addCA, want: "ca.key is there already", is: ErrExists},
		"a second key": {
			do:      func(d Dir) error { _, err := d.Issue("a", Names{}, year); return err },
			prepare: func(t *testing.T, d Dir) { addCA(t, d); issue(t, d, "a", Names{}) },
			want:    "a.key is there already", is: ErrExists,
		},
		"a key without a certificate": {
			do:      func(d Dir) error { _, err := d.Issue("a", Names{}, year); return err },
			prepare: func(t *testing.T, d Dir) { addCA(t, d); write(t, d.Path+"/a.key", "mine") },
			want:    "a.key is there already", is: ErrExists,
		},
		"a certificate without a key": {
			do:      func(d Dir) error { _, err := d.Issue("a", Names{}, year); return err },
			prepare: func(t *testing.T, d Dir) { addCA(t, d); write(t, d.Path+"/a.crt", "mine") },
			want:    "a.crt is there already", is: ErrExists,
		},
		"the CA's name":   {do: func(d Dir) error { _, err := d.Issue("ca", Names{}, year); return err }, prepare: addCA, want: "the CA's own name"},
		"a path":          {do: func(d Dir) error { _, err := d.Issue("../a", Names{}, year); return err }, prepare: addCA, want: "not a host name"},
		"an address":      {do: func(d Dir) error { _, err := d.Issue("192.0.2.1", Names{}, year); return err }, prepare: addCA, want: "--ip"},
		"no name":         {do: func(d Dir) error { _, err := d.Issue("", Names{}, year); return err }, prepare: addCA, want: "not a host name"},
		"renew a path":    {do: func(d Dir) error { _, err := d.Renew("../a", year); return err }, prepare: addCA, want: "not a host name"},
		"renew a nobody":  {do: func(d Dir) error { _, err := d.Renew("a", year); return err }, prepare: addCA, want: "a.crt: no such file", is: fs.ErrNotExist},
		"an ended CA":     {do: func(d Dir) error { d.Now = later(11 * year); _, err := d.Issue("b", Names{}, year); return err }, prepare: addCA, want: "the CA ended on 2035-12-30: renew it first"},
		"no PEM":          {do: func(d Dir) error { _, err := d.Renew("a", year); return err }, prepare: func(t *testing.T, d Dir) { addCA(t, d); write(t, d.Path+"/a.crt", "x") }, want: "no certificate in it"},
		"a host as CA":    {do: func(d Dir) error { _, err := d.Issue("b", Names{}, year); return err }, prepare: hostAsCA, want: "ca.crt is no CA's certificate"},
		"keys exchanged":  {do: func(d Dir) error { _, err := d.Renew("a", year); return err }, prepare: exchangeKeys, want: "a.key is not the key of"},
		"no such a place": {do: func(d Dir) error { d.Path = "/proc/pki"; _, err := d.Init(); return err }, want: "/proc/pki", is: fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDir(t)
			if test.prepare != nil {
				test.prepare(t, d)
			}
			before := content(t, d)
			err := test.do(d)
			if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %v, want one with %q that is %v", err, test.want, test.is)
			}
			if diff := cmp.Diff(before, content(t, d)); diff != "" {
				t.Errorf("files (-before +after):\n%s", diff)
			}
		})
	}
}

func later(d time.Duration) func() time.Time { return func() time.Time { return start.Add(d) } }

func addCA(t *testing.T, d Dir) {
	t.Helper()
	if _, err := d.Init(); err != nil {
		t.Fatal(err)
	}
}

func hostAsCA(t *testing.T, d Dir) {
	t.Helper()
	addCA(t, d)
	issue(t, d, "a", Names{})
	for _, suffix := range []string{".crt", ".key"} {
		if err := os.Rename(d.Path+"/a"+suffix, d.Path+"/ca"+suffix); err != nil {
			t.Fatal(err)
		}
	}
}

func exchangeKeys(t *testing.T, d Dir) {
	t.Helper()
	addCA(t, d)
	issue(t, d, "a", Names{})
	issue(t, d, "b", Names{})
	if err := os.Rename(d.Path+"/b.key", d.Path+"/a.key"); err != nil {
		t.Fatal(err)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	d := withCA(t)
	issue(t, d, "a", Names{})
	for file, want := range map[string]fs.FileMode{"": 0o700, "ca.key": 0o600, "a.key": 0o600, "ca.crt": 0o644, "a.crt": 0o644} {
		info, err := os.Stat(filepath.Join(d.Path, file))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%q has mode %o, want %o", file, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	d := withCA(t)
	cert := issue(t, d, "a.example", Names{
		DNS: []string{"etcd.example", "localhost"},
		IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("127.0.0.1")},
	})
	if diff := cmp.Diff([]string{"a.example", "etcd.example", "localhost"}, cert.DNSNames); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	var ips []string
	for _, ip := range cert.IPAddresses {
		ips = append(ips, ip.String())
	}
	if diff := cmp.Diff([]string{"192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"}, ips); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestCAsHaveNames(t *testing.T) {
	t.Parallel()
	a, err := newDir(t).Init()
	if err != nil {
		t.Fatal(err)
	}
	b, err := newDir(t).Init()
	if err != nil {
		t.Fatal(err)
	}
	if a.Subject.String() == b.Subject.String() {
		t.Errorf("two CAs are called %s", a.Subject)
	}
}

// TestLife has certificates end in time: a host's not after its CA.
func TestLife(t *testing.T) {
	t.Parallel()
	d := withCA(t)
	for at, want := range map[time.Duration]time.Time{
		0:        start.Add(year),
		9 * year: start.Add(10 * year), // of 10
	} {
		d.Now = later(at + time.Hour)
		name := strings.ToLower(at.String())
		cert, err := d.Issue(strings.ReplaceAll(name, ".", "-"), Names{}, year-time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if !cert.NotAfter.Equal(want) {
			t.Errorf("made after %s, it ends %s, want %s", at, cert.NotAfter, want)
		}
		if !cert.NotBefore.Equal(start.Add(at)) {
			t.Errorf("made after %s, it begins %s", at, cert.NotBefore)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	d := withCA(t)
	issue(t, d, "b", Names{})
	write(t, d.Path+"/notes.txt", "no certificate")
	all, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range all {
		names = append(names, c.Subject.CommonName[:min(len(c.Subject.CommonName), len("overlayd CA"))])
	}
	if diff := cmp.Diff([]string{"b", "overlayd CA"}, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	write(t, d.Path+"/c.crt", "no certificate")
	if _, err := d.List(); err == nil || !strings.Contains(err.Error(), "c.crt") {
		t.Errorf("error %v, want one that names c.crt", err)
	}
}

// TestKeysAreNotTold looks for a key's bytes in an error about it.
func TestKeysAreNotTold(t *testing.T) {
	t.Parallel()
	d := withCA(t)
	issue(t, d, "a", Names{})
	key := []byte("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
	write(t, d.Path+"/a.key", string(key))
	_, err := d.Renew("a", year)
	if err == nil || bytes.Contains([]byte(err.Error()), []byte("c2VjcmV0")) || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
}
