package main

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/enrol"
)

func TestJoinAddress(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "192.0.2.1/24": "", "https://192.0.2.1": "", ":9418": "", "192.0.2.1:": "", "a b": "",
		"192.0.2.1": "192.0.2.1:9418", "192.0.2.1:99": "192.0.2.1:99", "host-1": "host-1:9418", "host-1.example:99": "host-1.example:99",
		"2001:db8::1": "[2001:db8::1]:9418", "[2001:db8::1]": "[2001:db8::1]:9418", "[2001:db8::1]:99": "[2001:db8::1]:99",
	} {
		got, err := joinAddress(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}

// TestClockOff finds by how much this host's clock differs from the server's, before a use of the token is gone.
func TestClockOff(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for off, want := range map[time.Duration]string{
		29 * time.Minute:  "",
		-29 * time.Minute: "",
		3 * time.Hour:     "this host's clock is 3h0m0s ahead of that of host-1:9418",
		-48 * time.Hour:   "this host's clock is 48h0m0s behind that of host-1:9418",
	} {
		s := &setup{app: &app{now: func() time.Time { return now.Add(off) }, stderr: new(bytes.Buffer)}}
		err := s.judge(t.Context(), "host-1:9418", &enrol.Visit{Greeting: enrol.Greeting{Now: now}})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s off: %v, want %q", off, err, want)
		}
	}
}

// TestEtcdClosed names the port of etcd that does not answer, before a use of the token is gone.
func TestEtcdClosed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &setup{app: &app{now: time.Now, stderr: new(bytes.Buffer)}}
	v := &enrol.Visit{Greeting: enrol.Greeting{Now: time.Now(), Endpoints: []string{"https://" + l.Addr().String()}}}
	if err := s.judge(t.Context(), "host-1:9418", v); err != nil {
		t.Error(err)
	}
	l.Close()
	want := "etcd at " + l.Addr().String() + " refuses connections"
	if err := s.judge(t.Context(), "host-1:9418", v); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}
