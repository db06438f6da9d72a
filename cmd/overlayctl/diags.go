package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/doctor"
	"github.com/overlayd/overlayd/cmd/internal/version"
	"github.com/overlayd/overlayd/subnet"
)

const (
	// partTimeout bounds each command whose output is gathered.
	partTimeout = 20 * time.Second
	// partLimit bounds what is kept of a part, in bytes: the routes to 60,000 peers fit.
	partLimit = 32 << 20
)

func (a *app) diagsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diags [FILE.tar.gz | -]",
		Short: "Gather what a bug report needs in one archive, without secrets",
		Long: `Gather what a bug report needs in one archive: versions, configuration, status, leases, what doctor finds, links,
addresses, routes, neighbours and FDB entries, firewall rules, kernel parameters and the last of the log. It needs root
to see everything. What cannot be had is named in the archive.

Passwords, tokens and private keys are removed, and files that hold them are not read. Host names and addresses stay:
look at the archive before you give it to others.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("unexpected argument %q", args[1])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name := a.now().UTC().Format("overlayd-diags-20060102-150405.tar.gz")
			if len(args) == 1 {
				name = args[0]
			}
			return a.writeDiags(cmd.Context(), name, a.parts(cmd.Flag("config").Value.String()))
		},
	}
}

// writeDiags writes the archive to a new file, or to standard output.
func (a *app) writeDiags(ctx context.Context, name string, parts []part) (err error) {
	if name == "-" {
		return a.archive(ctx, a.stdout, parts)
	}
	// New and readable only by its owner: it is about to hold what not everybody may know.
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(a.archive(ctx, f, parts), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	_, err = fmt.Fprintf(a.stdout, "wrote %s; it has host names and addresses: look at it before you give it to others\n", name)
	return err
}

func (a *app) archive(ctx context.Context, w io.Writer, parts []part) error {
	defer a.progress("gathering")()
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	clean := newScrubber(a.settings.Etcd.PasswordFile)
	for _, p := range parts {
		data, err := p.gather(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			data = fmt.Appendf(data, "\n# not complete: %v\n", err)
		}
		data = clean.scrub(data[:min(len(data), partLimit)])
		header := &tar.Header{Name: "overlayd-diags/" + p.name, Mode: 0o600, Size: int64(len(data)), ModTime: a.now().Truncate(time.Second)}
		if err := t.WriteHeader(header); err != nil {
			return err
		}
		if _, err := t.Write(data); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

// part is a file of the archive. What was gathered before an error counts.
type part struct {
	name   string
	gather func(context.Context) ([]byte, error)
}

func (a *app) parts(configFile string) []part {
	return []part{
		{"versions.txt", a.gatherVersions},
		{"overlayd.yaml", file(configFile)},
		{"environment.txt", gatherEnvironment},
		{"subnet.env", func(context.Context) ([]byte, error) {
			return subnet.ReadFile(filepath.Join(a.settings.RunDir, "subnet.env"))
		}},
		{"subnets.txt", a.gatherSubnets},
		{"status.json", a.gatherStatus},
		{"network.json", func(ctx context.Context) ([]byte, error) { raw, _, err := a.network(ctx); return raw, err }},
		{"networks.json", func(ctx context.Context) ([]byte, error) {
			list, err := a.listNetworks(ctx)
			if err != nil {
				return nil, err
			}
			return json.MarshalIndent(list, "", "  ")
		}},
		{"leases.json", a.gatherLeases},
		{"endpoints.json", a.gatherEndpoints},
		{"denials.json", a.gatherDenials},
		{"policies.json", a.gatherPolicies},
		{"doctor.txt", a.gatherDoctor},
		{"links.txt", commands("ip -details -statistics link show", "ip address show")},
		{"routes.txt", commands("ip -4 rule show", "ip -6 rule show", "ip -4 -details route show table all", "ip -6 -details route show table all")},
		{"neighbours.txt", commands("ip neighbour show", "bridge fdb show")},
		{"nftables.txt", commands("nft list table inet overlayd", "nft list chains", "nft --stateless list table inet overlayd_policy",
			"nft list table inet overlayd_pending", "nft list table bridge overlayd_policy")},
		{"iptables.txt", commands("iptables-save -t filter", "ip6tables-save -t filter")},
		{"tc.txt", commands("tc qdisc show", "nft --stateless list ruleset")}, // what the fast path stays away for
		{"sysctls.txt", commands("sysctl -a --pattern ^net\\.(ipv4\\.(ip_forward|conf)|ipv6\\.conf|bridge|netfilter\\.nf_conntrack_(count|max))")},
		{"log.txt", commands("journalctl --unit=overlayd --lines=5000 --no-pager --output=short-iso")},
	}
}

func file(path string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return os.ReadFile(path) }
}

// commands runs each line. Its words have no blanks in them.
func commands(lines ...string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		var all bytes.Buffer
		var errs []error
		for _, line := range lines {
			fmt.Fprintf(&all, "# %s\n", line)
			out, err := runPart(ctx, strings.Fields(line))
			all.Write(out)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", line, err))
			}
		}
		return all.Bytes(), errors.Join(errs...)
	}
}

func runPart(ctx context.Context, args []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	return exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
}

func (a *app) gatherVersions(ctx context.Context) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "overlayctl %s\n", version.String())
	s, err := a.askDaemon(ctx)
	if err == nil {
		fmt.Fprintf(&b, "overlayd %s, started %s\n", s.Version, s.Started.UTC().Format(time.RFC3339))
	}
	more, moreErr := commands("uname -a", "cat /etc/os-release", "nft --version", "ip -Version", "iptables --version", "systemctl --version")(ctx)
	b.Write(more)
	return b.Bytes(), errors.Join(err, moreErr)
}

// gatherEnvironment lists the variables that set something of ours.
func gatherEnvironment(context.Context) ([]byte, error) {
	var b bytes.Buffer
	for _, entry := range os.Environ() {
		if strings.HasPrefix(entry, "OVERLAYD_") || strings.HasPrefix(entry, "OVERLAYCTL_") {
			fmt.Fprintln(&b, entry)
		}
	}
	return b.Bytes(), nil
}

func (a *app) gatherStatus(ctx context.Context) ([]byte, error) {
	s, err := a.askDaemon(ctx)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(s, "", "  ")
}

// gatherSubnets is the subnet.env of each network that has a name.
func (a *app) gatherSubnets(context.Context) ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(a.settings.RunDir, "*", "subnet.env"))
	var b bytes.Buffer
	for _, file := range files {
		data, readErr := subnet.ReadFile(file)
		err = errors.Join(err, readErr)
		fmt.Fprintf(&b, "# %s\n%s", file, data)
	}
	return b.Bytes(), err
}

func (a *app) gatherLeases(ctx context.Context) (data []byte, err error) {
	listing, err := a.listing(ctx)
	all := struct {
		Revision int64    `json:"revision"`
		Leases   []lease  `json:"leases"`
		Skipped  []string `json:"skipped"`
	}{Revision: listing.Revision, Leases: []lease{}, Skipped: []string{}}
	for _, r := range listing.Records {
		all.Leases = append(all.Leases, newLease(r))
	}
	for _, k := range listing.Skipped {
		all.Skipped = append(all.Skipped, fmt.Sprintf("%s: %v", k.Key, k.Err))
	}
	data, encodeErr := json.MarshalIndent(all, "", "  ")
	return data, errors.Join(err, encodeErr)
}

func (a *app) gatherDoctor(ctx context.Context) ([]byte, error) {
	var b bytes.Buffer
	colourless := *a
	colourless.screen = screen{}
	err := doctor.Run(ctx, a.patient(ctx), func(f doctor.Finding) { colourless.printFinding(&b, f) })
	return b.Bytes(), err
}
