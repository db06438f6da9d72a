package etcdstore

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeCertificates(t, dir)
	empty, password := filepath.Join(dir, "empty"), filepath.Join(dir, "password")
	writeFile(t, empty, "\n")
	writeFile(t, password, "secret")
	for name, tc := range map[string]struct {
		endpoints string // comma list
		edit      func(*Config)
		wantErr   string // empty: it is valid
		want      string // endpoints as they are used
	}{
		"none":               {wantErr: "no endpoint"},
		"no port":            {endpoints: "http://192.0.2.1", wantErr: "want host:port"},
		"no host":            {endpoints: "http://:2379", wantErr: "want host:port"},
		"bare IPv6":          {endpoints: "2001:db8::1", wantErr: "not a URL"},
		"unknown scheme":     {endpoints: "tcp://192.0.2.1:2379", wantErr: `scheme "tcp"`},
		"path":               {endpoints: "http://192.0.2.1:2379/v2", wantErr: "nothing may follow"},
		"password in URL":    {endpoints: "http://me:hunter2@192.0.2.1:2379", wantErr: `endpoint "***@192.0.2.1:2379"`},
		"odd password":       {endpoints: "http://me:p@ss:w/o?rd#@192.0.2.1:2379", wantErr: `endpoint "***@192.0.2.1:2379": not a URL`},
		"one of two":         {endpoints: "192.0.2.1:2379,", wantErr: `endpoint ""`},
		"cert, no key":       {endpoints: "https://a:1", edit: func(c *Config) { c.CertFile = dir + "/client.pem" }, wantErr: "go together"},
		"user, no password":  {endpoints: "a:1", edit: func(c *Config) { c.Username = "u" }, wantErr: "go together"},
		"empty password":     {endpoints: "a:1", edit: func(c *Config) { c.Username, c.PasswordFile = "u", empty }, wantErr: "is empty"},
		"no password file":   {endpoints: "a:1", edit: func(c *Config) { c.Username, c.PasswordFile = "u", dir+"/none" }, wantErr: "none"},
		"no CA file":         {endpoints: "https://a:1", edit: func(c *Config) { c.CAFile = dir + "/none" }, wantErr: "CA file"},
		"CA file is no CA":   {endpoints: "https://a:1", edit: func(c *Config) { c.CAFile = password }, wantErr: "no certificate in"},
		"key of another":     {endpoints: "https://a:1", edit: func(c *Config) { c.CertFile, c.KeyFile = dir+"/client.pem", dir+"/server-key.pem" }, wantErr: "client certificate"},
		"certs, unencrypted": {endpoints: "https://a:1,http://b:1", edit: func(c *Config) { c.CAFile = dir + "/ca.pem" }, wantErr: "http://b:1 is not encrypted"},
		"host:port":          {endpoints: "192.0.2.1:2379", want: "http://192.0.2.1:2379"},
		"IPv6":               {endpoints: "https://[2001:db8::1]:2379/", want: "https://[2001:db8::1]:2379"},
		"unix":               {endpoints: "unix:///run/etcd.sock", want: "unix:///run/etcd.sock"},
		"everything": {endpoints: "https://a:1,https://b:2", want: "https://a:1,https://b:2", edit: func(c *Config) {
			c.CAFile, c.CertFile, c.KeyFile = dir+"/ca.pem", dir+"/client.pem", dir+"/client-key.pem"
			c.Username, c.PasswordFile = "u", password
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cfg Config
			if tc.endpoints != "" {
				cfg.Endpoints = strings.Split(tc.endpoints, ",")
			}
			if tc.edit != nil {
				tc.edit(&cfg)
			}
			given := slices.Clone(cfg.Endpoints)
			c, err := NewClient(cfg, slog.New(slog.DiscardHandler))
			switch {
			case err == nil && tc.wantErr != "":
				t.Fatal("was taken")
			case err != nil && (tc.wantErr == "" || !strings.Contains(err.Error(), tc.wantErr) || strings.Contains(err.Error(), "hunter2")):
				t.Fatalf("error %q does not say %q", err, tc.wantErr)
			case err != nil:
				return
			}
			defer c.Close()
			if got := strings.Join(c.Endpoints(), ","); got != tc.want {
				t.Errorf("endpoints %s, want %s", got, tc.want)
			}
			if !slices.Equal(given, cfg.Endpoints) {
				t.Error("the caller's endpoints were changed")
			}
		})
	}
}

func TestPrefix(t *testing.T) {
	t.Parallel()
	c := openStore(t, "http://127.0.0.1:1").client
	for given, want := range map[string]string{
		"": "", "net": "", "/a/../b": "", "/": "", "//": "", "/a//b": "", // none
		prefix: prefix, prefix + "/": prefix, "/a": "/a",
	} {
		s, err := c.Store(given)
		switch {
		case want == "" && (err == nil || !strings.Contains(err.Error(), "prefix")):
			t.Errorf("Store(%q) = %v", given, err)
		case want != "" && (err != nil || s.prefix != want):
			t.Errorf("Store(%q) = %v, %v", given, s, err)
		}
	}
}
