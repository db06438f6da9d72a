package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/backend/userspace"
	"github.com/overlayd/overlayd/cmd/internal/doctor"
	"github.com/overlayd/overlayd/cmd/internal/version"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps containers from reaching each other; exit 1 if there is something",
		Long: `Look for what commonly keeps containers of different hosts from reaching each other, one thing after the other,
and say what to do about it. Nothing is changed. It needs root, and takes some seconds: it probes the other hosts, by
small packets, by the largest that containers may send, by UDP, and from a network namespace that for this time is
attached as a container is.

What warns may be meant to be so; what fails wants mending, and makes the exit code 1. The checks are in the order in
which to mend.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := []doctor.Finding{} // never null in JSON
			failed := false
			err := doctor.Run(cmd.Context(), a.patient(cmd.Context()), func(f doctor.Finding) {
				findings = append(findings, f)
				failed = failed || f.Level == doctor.Fail
				if a.output.forPeople() { // each when it is there, since some take seconds
					a.printFinding(a.stdout, f)
				}
			})
			if err != nil {
				return err
			}
			return a.show(findings, failed, func(io.Writer) {}) // people have seen it already
		},
	}
}

// patient is what is known of this host.
func (a *app) patient(ctx context.Context) *doctor.Host {
	h := &doctor.Host{CertFile: a.settings.Etcd.CertFile, EtcdURLs: a.settings.Etcd.Endpoints, Now: a.now(), Root: "/"}
	if a.settings.EtcdEmbedded && a.settings.Etcd.CertFile == "" {
		h.Insecure = a.settings.EtcdEmbeddedListen
	}
	h.UserSpace.Answer, h.UserSpace.Err = userspace.New(a.settings.RunDir, slog.New(slog.DiscardHandler)).There()
	h.UserSpace.Latest = version.String()
	status, err := a.askDaemon(ctx)
	if h.StatusErr = err; err == nil {
		h.Status = &status
	}
	raw := []byte(status.Network)
	start := a.now()
	if len(raw) == 0 {
		raw, _, h.EtcdErr = a.network(ctx)
	}
	if h.EtcdErr == nil {
		h.Listing, h.EtcdErr = a.listing(ctx)
	}
	h.EtcdTook = a.now().Sub(start)
	if h.EtcdErr == nil {
		h.EtcdErr = a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
			h.EtcdOpen, err = s.Unbound(ctx)
			return err
		})
	}
	if n, err := subnet.ParseNetwork(raw); err == nil {
		h.Network = n
	}
	return h
}

// tones are how the levels look.
var tones = map[doctor.Level]tone{doctor.OK: good, doctor.Warn: uneasy, doctor.Fail: bad}

func (a *app) printFinding(w io.Writer, f doctor.Finding) {
	const level, check = 6, 18 // columns
	text := f.Text
	lines := a.screen.wrap(printable(text), level+check)
	if f.Advice != "" {
		for _, line := range a.screen.wrap(printable(f.Advice), level+check+2) {
			lines = append(lines, "  "+line)
		}
	}
	name := f.Check
	head := a.screen.paint(tones[f.Level], string(f.Level)) + strings.Repeat(" ", level-len(f.Level))
	for _, line := range lines {
		fmt.Fprintf(w, "%s%-*s%s\n", head, check, name, line)
		head, name = strings.Repeat(" ", level), ""
	}
}
