package settings_test

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// load loads the daemon's settings as the program called overlayd would.
func load(t *testing.T, file string, env map[string]string, args ...string) (settings.Daemon, settings.Sources, error) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	if file != "" {
		args = append(args, "--config="+write(t, file))
	}
	var d settings.Daemon
	fs := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	d.Register(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	sources, err := settings.Load(fs, "overlayd")
	return d, sources, err
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "overlayd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadRefuses(t *testing.T) {
	for _, test := range []struct {
		name, file string
		env        map[string]string
		args       []string
		want       string // "FILE" stands for the path of file
	}{
		{name: "unknown key", file: "etcd-endpoint: x", want: `FILE: unknown key "etcd-endpoint" (did you mean "etcd-endpoints"?)`},
		{name: "unknown key like no other", file: "qqq: x", want: `FILE: unknown key "qqq"`},
		{name: "two unknown keys", file: "zzz: 1\nqqq: x", want: "FILE: unknown key \"qqq\"\nFILE: unknown key \"zzz\""},
		{name: "config within the file", file: "config: x", want: `FILE: unknown key "config"`},
		{name: "capitals", file: "Run-Dir: /x", want: `FILE: unknown key "Run-Dir" (did you mean "run-dir"?)`},
		{name: "key twice", file: "run-dir: /a\nrun-dir: /b", want: `FILE: error converting YAML to JSON: yaml: unmarshal errors:
  line 2: key "run-dir" already set in map`},
		{name: "not a mapping", file: "- a", want: "FILE: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}"},
		{name: "mapping for a scalar", file: "lease-ttl: {hours: 24}", want: "FILE: lease-ttl: must not be a mapping"},
		{name: "list for a scalar", file: "lease-ttl: [24h]", want: "FILE: lease-ttl: must be one value, not a list"},
		{name: "number for a duration", file: "lease-ttl: 24", want: `FILE: lease-ttl: invalid value "24": time: missing unit in duration "24"`},
		{name: "no bool", file: "ip-masq: maybe", want: `FILE: ip-masq: invalid value "maybe": strconv.ParseBool: parsing "maybe": invalid syntax`},
		{name: "no address", file: "public-ip: 10.0.0.256", want: `FILE: public-ip: invalid value "10.0.0.256": ParseAddr("10.0.0.256"): IPv4 field has value >255`},
		{
			name: "bad environment", env: map[string]string{"OVERLAYD_LEASE_TTL": "1 day"},
			want: `OVERLAYD_LEASE_TTL: invalid value "1 day": time: unknown unit " day" in duration "1 day"`,
		},
		{
			name: "unknown environment", env: map[string]string{"OVERLAYD_ETCD_ENDPOINT": "x"},
			want: `unknown environment variable OVERLAYD_ETCD_ENDPOINT (did you mean "OVERLAYD_ETCD_ENDPOINTS"?)`,
		},
		{
			name: "named file missing", args: []string{"--config=/nonexistent/o.yaml"},
			want: "configuration file: open /nonexistent/o.yaml: no such file or directory",
		},
		{
			name: "file named by the environment missing", env: map[string]string{"OVERLAYD_CONFIG": "/nonexistent/e.yaml"},
			want: "configuration file: open /nonexistent/e.yaml: no such file or directory",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := load(t, test.file, test.env, test.args...)
			if err == nil {
				t.Fatal("no error")
			}
			got := err.Error()
			for line := range strings.Lines(got) {
				if path, _, ok := strings.Cut(line, ": "); ok && filepath.Base(path) == "overlayd.yaml" {
					got = strings.ReplaceAll(got, path, "FILE")
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadPrecedence(t *testing.T) {
	file := "run-dir: /file\nstate-dir: /file\nhttp: ''\nip-masq: yes\n"
	env := map[string]string{"OVERLAYD_RUN_DIR": "/env", "OVERLAYD_STATE_DIR": "/env", "OVERLAYD_ETCD_PREFIX": ""}
	got, sources, err := load(t, file, env, "--run-dir=/flag", "--lease-ttl=1h")
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.RunDir = "/flag"
	want.StateDir = "/env"
	want.HTTP = ""
	want.Etcd.Prefix = ""
	want.IPMasq = true
	want.LeaseTTL = time.Hour
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"run-dir": "--run-dir", "state-dir": "OVERLAYD_STATE_DIR", "log-level": "",
	} {
		if got := sources[name]; got != want {
			t.Errorf("source of %s = %q, want %q", name, got, want)
		}
	}
	if got := sources["http"]; !strings.HasSuffix(got, "/overlayd.yaml: http") {
		t.Errorf("source of http = %q", got)
	}
}

func TestLoadValues(t *testing.T) {
	got, _, err := load(t, `
etcd-endpoints: [http://10.0.0.1:2379, http://10.0.0.2:2379]
iface: eth0, eth1
iface-regex: ["^bond[0-9]{1,2}$", "^eth"]
network: {Network: 10.5.0.0/16, Backend: {Type: vxlan, VNI: 7}}
public-ipv6: fd00::1
lease-ttl: 36h
log-level: debug
etcd-cafile:
`, map[string]string{"OVERLAYD_DRY_RUN": "true"})
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Etcd.Endpoints = []string{"http://10.0.0.1:2379", "http://10.0.0.2:2379"}
	want.Iface = []string{"eth0", "eth1"}
	want.IfaceRegex = []string{"^bond[0-9]{1,2}$", "^eth"}
	want.Network = `{"Backend":{"Type":"vxlan","VNI":7},"Network":"10.5.0.0/16"}`
	want.PublicIPv6 = netip.MustParseAddr("fd00::1")
	want.LeaseTTL = 36 * time.Hour
	want.LogLevel = slog.LevelDebug
	want.DryRun = true
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func TestLoadListsFromTheEnvironment(t *testing.T) {
	got, _, err := load(t, "", map[string]string{
		"OVERLAYD_ETCD_ENDPOINTS": "http://a:1, http://b:2,",
		"OVERLAYD_IFACE_REGEX":    "^eth{1,2}$",
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"http://a:1", "http://b:2"}, got.Etcd.Endpoints); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"^eth{1,2}$"}, got.IfaceRegex); diff != "" {
		t.Errorf("iface-regex (-want +got):\n%s", diff)
	}
}

func TestLoadClient(t *testing.T) {
	t.Setenv("OVERLAYCTL_RUN_DIR", "/ctl")
	t.Setenv("OVERLAYD_RUN_DIR", "/daemon")
	t.Setenv("OVERLAYD_ETCD_PREFIX", "/daemon")
	t.Setenv("OVERLAYD_LEASE_TTL", "nonsense that is the daemon's to refuse")
	t.Setenv("OVERLAYCTL_CONFIG", write(t, "lease-ttl: 1h\netcd-prefix: /file\netcd-username: file"))
	var c settings.Client
	fs := pflag.NewFlagSet("overlayctl", pflag.ContinueOnError)
	c.Register(fs)
	if _, err := settings.Load(fs, "overlayctl"); err != nil {
		t.Fatal(err)
	}
	want := settings.Client{Etcd: defaults().Etcd, RunDir: "/ctl"}
	want.Etcd.Prefix = "/daemon"
	want.Etcd.Username = "file"
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}

	t.Setenv("OVERLAYCTL_LEASE_TTL", "1h")
	_, err := settings.Load(fs, "overlayctl")
	if want := "unknown environment variable OVERLAYCTL_LEASE_TTL"; err == nil || err.Error() != want {
		t.Errorf("error = %v, want %s", err, want)
	}
}

func TestUseEmbedded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		embedded bool
		from     settings.Sources
		want     string
	}{
		"embedded":     {true, nil, "unix:///run/overlayd/etcd.sock"},
		"given":        {true, settings.Sources{"etcd-endpoints": "--etcd-endpoints"}, "http://given:1"},
		"not embedded": {false, nil, "http://given:1"},
	} {
		c := settings.Client{EtcdEmbedded: test.embedded, EtcdEmbeddedListen: "192.0.2.1:2379", RunDir: "/run/overlayd"}
		c.Etcd.Endpoints = []string{"http://given:1"}
		c.UseEmbedded(test.from)
		if diff := cmp.Diff([]string{test.want}, c.Etcd.Endpoints); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestShippedFile reads the reference with every setting in it switched on.
func TestShippedFile(t *testing.T) {
	shipped, err := os.ReadFile("../../../etc/overlayd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	setting := regexp.MustCompile(`(?m)^#([a-z0-9-]+):`)
	got := map[string]bool{}
	for _, match := range setting.FindAllSubmatch(shipped, -1) {
		got[string(match[1])] = true
	}
	if _, _, err := load(t, string(setting.ReplaceAll(shipped, []byte("$1:"))), nil); err != nil {
		t.Error(err)
	}
	want := map[string]bool{}
	var d settings.Daemon
	fs := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	d.Register(fs)
	fs.VisitAll(func(f *pflag.Flag) { want[f.Name] = true })
	delete(want, "config")
	delete(want, "dry-run") // for once, not for good
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings in the file (-want +got):\n%s", diff)
	}
}

func TestSourcesWrap(t *testing.T) {
	t.Parallel()
	s := settings.Sources{"http": "OVERLAYD_HTTP"}
	if got, want := s.Wrap("http", os.ErrInvalid).Error(), "OVERLAYD_HTTP: invalid argument"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := s.Wrap("run-dir", os.ErrInvalid).Error(), "--run-dir (default): invalid argument"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func defaults() settings.Daemon {
	return settings.Daemon{
		Client: settings.Client{
			Etcd:   settings.Etcd{Config: etcdstore.Config{Endpoints: []string{"http://127.0.0.1:2379"}}, Prefix: "/coreos.com/network"},
			RunDir: "/run/overlayd",
		},
		Guard: []string{"tunnel", "overlay", "containers"}, Unready: "closed", FastPath: "auto",
		Names: true, LeaseTTL: 24 * time.Hour,
		StateDir:  "/var/lib/overlayd",
		HTTP:      "127.0.0.1:9417",
		LogLevel:  slog.LevelInfo,
		LogFormat: "text",
	}
}
