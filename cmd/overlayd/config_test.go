package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/cmd/internal/settings"
)

// told is the configuration that a command line gives.
func told(t *testing.T, args ...string) (*config, error) {
	t.Helper()
	declared := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	new(settings.Daemon).Register(declared)
	if err := declared.Parse(append([]string{"--config", "/dev/null"}, args...)); err != nil {
		t.Fatal(err)
	}
	return source{declared, io.Discard}.config()
}

func TestNewConfigRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		"--lease-ttl: 9s is too short: at least 10s":                                                                       {"--lease-ttl", "9s"},
		"--etcd-certfile: the embedded etcd needs --etcd-cafile too":                                                       {"--etcd-embedded", "--etcd-certfile", "a", "--etcd-keyfile", "b"},
		"--etcd-embedded-listen: without certificates who reaches 192.0.2.1:2379 can take any subnet: let overlayctl init": {"--etcd-embedded", "--etcd-embedded-listen", "192.0.2.1:2379"},
		"--etcd-embedded-listen: without certificates who reaches 127.0.0.1:2379 can take any subnet":                      {"--etcd-embedded", "--etcd-embedded-listen", "127.0.0.1:2379"},
		`--log-format: "xml" is not a log format: use text or json`:                                                        {"--log-format", "xml"},
		"--public-ip: fd00::1 is not an IPv4 address; use --public-ipv6":                                                   {"--public-ip", "fd00::1"},
		"--public-ipv6: 192.0.2.1 is not an IPv6 address; use --public-ip":                                                 {"--public-ipv6", "192.0.2.1"},
		"--public-ipv6: ::ffff:192.0.2.1 is not an IPv6 address":                                                           {"--public-ipv6", "::ffff:192.0.2.1"},
		"--network: network config: SubnetLen":                                                                             {"--network", `{"Network":"10.0.0.0/16","SubnetLen":31}`},
		`"Backend.Type: \"geneve\" is not a backend`:                                                                       {"--network", `{"Network":"10.0.0.0/16","Backend":{"Type":"geneve"}}`},
		"--network: network config: unknown key Netwrok, Backend.VIN":                                                      {"--network", `{"Network":"10.0.0.0/16","Netwrok":"x","Backend":{"Type":"vxlan","VIN":1}}`},
		`--fast-path: "maybe" is none of auto, on and off`:                                                                 {"--fast-path", "maybe"},
		`"10.0.0.0/40" is neither a JSON object nor a range`:                                                               {"--network", "10.0.0.0/40"},
	} {
		_, err := told(t, args...)
		if want = strings.ReplaceAll(strings.TrimPrefix(want, `"`), `\"`, `"`); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", args, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than one line: %v", args, err)
		}
	}
}

// TestReferenceFile holds etc/overlayd.yaml against the code: it loads with every setting uncommented, names them all,
// and the defaults that it shows are the defaults.
func TestReferenceFile(t *testing.T) {
	text, err := os.ReadFile("../../etc/overlayd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	setting := regexp.MustCompile(`(?m)^#([a-z0-9-]+: .*)$`)
	path := filepath.Join(t.TempDir(), "overlayd.yaml")
	if err := os.WriteFile(path, setting.ReplaceAll(text, []byte("$1")), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(file string) (*pflag.FlagSet, settings.Sources) {
		var d settings.Daemon
		declared := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
		d.Register(declared)
		if err := declared.Parse([]string{"--config", file}); err != nil {
			t.Fatal(err)
		}
		from, err := settings.Load(declared, "overlayd")
		if err != nil {
			t.Fatal(err)
		}
		return declared, from
	}
	shown, from := load(path)
	defaults, _ := load("/dev/null")
	noDefault := regexp.MustCompile(`^(etcd-(cafile|certfile|keyfile|username|password-file|embedded-listen)|join-listen|network|iface.*|public-ip.*|subnet-file)$`)
	shown.VisitAll(func(f *pflag.Flag) {
		if f.Name == "config" || f.Name == "dry-run" { // these are for the command line
			return
		}
		if _, ok := from[f.Name]; !ok {
			t.Errorf("etc/overlayd.yaml does not show %s", f.Name)
			return
		}
		if want := defaults.Lookup(f.Name).Value.String(); f.Value.String() != want && !noDefault.MatchString(f.Name) {
			t.Errorf("etc/overlayd.yaml shows %s as %s; the default is %s", f.Name, f.Value, want)
		}
	})
}
