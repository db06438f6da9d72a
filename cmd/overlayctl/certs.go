package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/certs"
)

const (
	day = 24 * time.Hour
	// renewEarly is how long before its end a certificate is called one to renew.
	renewEarly = 30 * day
)

// certificate is a certificate as it is printed.
type certificate struct {
	Name    string    `json:"name"`
	DNS     []string  `json:"dns"`
	IPs     []string  `json:"ips"`
	Expires time.Time `json:"expires"`
	CA      bool      `json:"ca"`
}

func newCertificate(c *x509.Certificate) certificate {
	out := certificate{Name: c.Subject.CommonName, DNS: c.DNSNames, IPs: []string{}, Expires: c.NotAfter, CA: c.IsCA}
	if out.DNS == nil {
		out.DNS = []string{}
	}
	for _, ip := range c.IPAddresses {
		out.IPs = append(out.IPs, ip.String())
	}
	return out
}

func (a *app) certsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "certs",
		Short: "Make the certificates by which hosts and etcd know each other",
	}, a.certsInitCommand(), a.certsIssueCommand(), a.certsRenewCommand(), a.certsListCommand())
}

func (a *app) certsInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "Make a CA in a directory",
		Long: `Make a CA in a directory: ca.crt, which every host gets, and ca.key, which none needs. Who has ca.key can let
hosts into etcd: keep the directory where only you can read it, and save a copy of it.`,
		Example: "  overlayctl certs init /root/overlayd-certs",
		Args:    arguments("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			d := a.certsDir(args[0])
			cert, err := d.Init()
			if err != nil {
				return err
			}
			return a.told(cert, "now, for each host: overlayctl certs issue %s NAME --ip ADDRESS", args[0])
		},
	}
}

func (a *app) certsIssueCommand() *cobra.Command {
	var ips, names []string
	var days int
	cmd := &cobra.Command{
		Use:   "issue DIR NAME [--ip ADDRESS]… [--dns NAME]…",
		Short: "Make a key and a certificate for a host",
		Long: `Make a key and a certificate for a host, to show to etcd and, if etcd is embedded in the host's overlayd, to
etcd's clients. For them it is valid for the host's name, the addresses and names given, and localhost. A key that is
there is never overwritten: see overlayctl certs renew.`,
		Example: "  overlayctl certs issue /root/overlayd-certs db-1 --ip 192.0.2.7",
		Args:    arguments("DIR", "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			n := certs.Names{DNS: names}
			for _, text := range ips {
				ip, err := netip.ParseAddr(text)
				if err != nil {
					return usageError{fmt.Errorf("--ip: %w", err)}
				}
				n.IPs = append(n.IPs, ip.Unmap())
			}
			life, err := lifetime(days)
			if err != nil {
				return err
			}
			d := a.certsDir(args[0])
			cert, err := d.Issue(args[1], n, life)
			if errors.Is(err, certs.ErrExists) {
				return fmt.Errorf("%w: for a new certificate, overlayctl certs renew %s %s", err, args[0], args[1])
			}
			if err != nil {
				return err
			}
			ca, _ := d.Files("ca")
			crt, key := d.Files(args[1])
			return a.told(cert, "copy %s, %s and %s to the host; only overlayd may read the key", ca, crt, key)
		},
	}
	cmd.Flags().StringSliceVar(&ips, "ip", nil, "`address` at which the host is reached; may be repeated")
	cmd.Flags().StringSliceVar(&names, "dns", nil, "another `name` of the host; may be repeated")
	daysFlag(cmd, &days)
	return cmd
}

func (a *app) certsRenewCommand() *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use:   "renew DIR (NAME | ca)",
		Short: "Make a new certificate that says what the old one says",
		Long: `Make a new certificate that says what the old one says, for a host or for the CA itself. The key stays. Of a
host, copy the new certificate to it: overlayd reads it when it next connects, and needs no restart. Of the CA, copy
ca.crt to all hosts; what it has signed stays valid.`,
		Args: arguments("DIR", "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			life, err := lifetime(days)
			if err != nil {
				return err
			}
			d := a.certsDir(args[0])
			cert, err := d.Renew(args[1], life)
			if err != nil {
				return err
			}
			path, _ := d.Files(args[1])
			return a.told(cert, "copy %s to where the old one is", path)
		},
	}
	daysFlag(cmd, &days)
	return cmd
}

func (a *app) certsListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list DIR",
		Short: "List the certificates and when they end; exit 1 if one ends within 30 days",
		Args:  arguments("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			found, err := a.certsDir(args[0]).List()
			if err != nil {
				return err
			}
			list := []certificate{}
			attention := false
			for _, c := range found {
				list = append(list, newCertificate(c))
				attention = attention || a.endsSoon(c.NotAfter)
			}
			return a.show(list, attention, func(w io.Writer) {
				row(w, "NAME", "EXPIRES", "VALID FOR")
				for _, c := range list {
					row(w, c.Name, a.certExpiry(c.Expires), c.validFor())
				}
			})
		},
	}
}

// told says what was made, and what to do with it.
func (a *app) told(made *x509.Certificate, then string, args ...any) error {
	c := newCertificate(made)
	return a.print(c, func(w io.Writer) {
		fmt.Fprintf(w, "%s: valid until %s", c.Name, c.Expires.UTC().Format(time.DateOnly))
		if !c.CA {
			fmt.Fprintf(w, " for %s", c.validFor())
		}
		fmt.Fprintf(w, "\n"+then+"\n", args...)
	})
}

func (c certificate) validFor() string {
	return strings.Join(append(append([]string{}, c.DNS...), c.IPs...), ",")
}

// certExpiry is a date, and how far it is if something must be done before.
func (a *app) certExpiry(at time.Time) string {
	text := at.UTC().Format(time.DateOnly)
	switch left := at.Sub(a.now()); {
	case left <= 0:
		text += " (ended: renew it)"
	case a.endsSoon(at):
		text += fmt.Sprintf(" (in %s: renew it)", rough(left))
	}
	return text
}

func (a *app) endsSoon(at time.Time) bool { return at.Sub(a.now()) < renewEarly }

func (a *app) certsDir(path string) certs.Dir { return certs.Dir{Path: path, Now: a.now} }

// maxDays is as long as a CA lives.
const maxDays = 3650

func daysFlag(cmd *cobra.Command, days *int) {
	cmd.Flags().IntVar(days, "days", 730, "how many `days` a host's certificate is valid")
}

func lifetime(days int) (time.Duration, error) {
	if days < 1 || days > maxDays {
		return 0, usageError{fmt.Errorf("--days: %d is not in 1-%d", days, maxDays)}
	}
	return time.Duration(days) * day, nil
}
