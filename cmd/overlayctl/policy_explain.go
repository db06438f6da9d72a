package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func (a *app) policyExplainCommand() *cobra.Command {
	var from, to, port, namespace string
	cmd := &cobra.Command{
		Use:   "explain --from A --to B --port 80/tcp",
		Short: "Say which policy allows a connection, or that none does",
		Long: `Say which policy allows a new connection, or that none does. A and B are containers, by namespace/name; addresses, of
containers or others; or containers that need not be there, by namespace and labels: dev:app=web,tier=db. Containers of
other hosts are known where a policy needs them. It reads the policies in etcd; what is in force on a host its overlayctl status
says. Not said here: a host always reaches its own containers.`,
		Example: `  overlayctl policy explain --from dev/web-1 --to prod/db-1 --port 5432/tcp
  overlayctl policy explain --from 192.0.2.7 --to dev:app=web --port 80/tcp
  overlayctl policy explain --from dev: --to 10.244.7.9 --port icmp`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" || to == "" || port == "" {
				return usageError{errors.New("name both ends and the port: --from, --to and --port")}
			}
			target, err := parseTarget(port)
			if err != nil {
				return usageError{err}
			}
			held, err := a.policies(cmd.Context())
			if err != nil {
				return err
			}
			known, err := a.knownEndpoints(cmd.Context())
			if err != nil {
				return err
			}
			x, err := parseParty(known, from, namespace)
			if err != nil {
				return fmt.Errorf("--from: %w", err)
			}
			y, err := parseParty(known, to, namespace)
			if err != nil {
				return fmt.Errorf("--to: %w", err)
			}
			return a.explain(held, x, y, target)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "who connects: `A`, a container, an address, or labels")
	cmd.Flags().StringVar(&to, "to", "", "whom it connects to: `B`, a container, an address, or labels")
	cmd.Flags().StringVar(&port, "port", "", "`port` as 80/tcp, 53/udp, 5060/sctp; or icmp, as all that has no ports")
	declareNamespace(cmd, &namespace, "`namespace` of names and labels that say none (default: default)")
	return cmd
}

func parseTarget(text string) (t policy.Target, err error) {
	if text == "icmp" {
		return t, nil
	}
	number, protocol, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	t = policy.Target{Port: uint16(n), Protocol: policy.Protocol(strings.ToUpper(cmp.Or(protocol, "tcp")))}
	if err != nil || n == 0 || !slices.Contains([]policy.Protocol{policy.TCP, policy.UDP, policy.SCTP}, t.Protocol) {
		return t, fmt.Errorf("--port: %q is not as 80/tcp, 53/udp, 5060/sctp or icmp", text)
	}
	return t, nil
}

// party is one that a person named.
type party struct {
	name     string
	identity *policy.Identity // nil: outside
	addrs    []netip.Addr     // none: not known
}

// parseParty finds who is meant.
func parseParty(known []policy.Endpoint, text, namespace string) (party, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		for _, e := range known {
			if slices.Contains(e.IPs, addr) {
				return party{fmt.Sprintf("%s/%s (%s)", e.Namespace, e.Name, addr), &e.Identity, []netip.Addr{addr}}, nil
			}
		}
		return party{addr.String() + ", which is no container's that is known", nil, []netip.Addr{addr}}, nil
	}
	namespace = cmp.Or(namespace, "default")
	if ns, text, ok := strings.Cut(text, ":"); ok {
		id := policy.Identity{Namespace: cmp.Or(ns, namespace), Labels: map[string]string{}}
		if err := policy.ValidateNamespace(id.Namespace); err != nil {
			return party{}, err
		}
		for pair := range strings.SplitSeq(text, ",") {
			if key, value, ok := strings.Cut(pair, "="); ok {
				id.Labels[key] = value
			} else if text != "" {
				return party{}, fmt.Errorf("%q is not as dev:app=web,tier=db", ns+":"+text)
			}
		}
		return party{id.Namespace + ":" + text, &id, nil}, policy.ValidateLabels(id.Labels)
	}
	key := text
	if !strings.Contains(key, "/") {
		key = namespace + "/" + key
	}
	var found []party
	for _, e := range known {
		if e.Namespace+"/"+e.Name == key {
			found = append(found, party{key, &e.Identity, e.IPs})
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		ns, _, _ := strings.Cut(key, "/")
		return party{}, fmt.Errorf("no container %s is known: those of other hosts are where a policy needs them; name its address, or its labels as %s:app=web", key, ns)
	}
	var addrs []string
	for _, f := range found {
		for _, ip := range f.addrs {
			addrs = append(addrs, ip.String())
		}
	}
	return party{}, fmt.Errorf("%s is the name of %d containers: name one by its address: %s", key, len(found), strings.Join(bound(addrs), ", "))
}

// knownEndpoints are those of this host, as its daemon has them, and those in etcd.
func (a *app) knownEndpoints(ctx context.Context) (all []policy.Endpoint, err error) {
	seen := map[netip.Addr]bool{}
	add := func(e policy.Endpoint) {
		if len(e.IPs) > 0 && !seen[e.IPs[0]] {
			seen[e.IPs[0]] = true
			all = append(all, e)
		}
	}
	if here, err := a.daemonEndpoints(ctx); err == nil { // it may not run here
		for _, e := range here {
			add(e.Endpoint)
		}
	}
	published, err := a.publishedEndpoints(ctx)
	for _, e := range published {
		add(e.Endpoint)
	}
	return all, err
}

// explained is what is printed.
type explained struct {
	From    string         `json:"from"`
	To      string         `json:"to"`
	Port    string         `json:"port"`
	Allowed bool           `json:"allowed"`
	Egress  *explainedSide `json:"egress"`  // null: it is outside, or reaches itself
	Ingress *explainedSide `json:"ingress"` // the same
}

type explainedSide struct {
	Isolated []string `json:"isolatedBy"`
	Allows   []string `json:"allowedBy"`
	text     string
}

// explain prints what follows for each family that both ends have; the same for both once.
func (a *app) explain(held *etcdstore.Policies, from, to party, target policy.Target) error {
	var all []explained
	var lines []string
	for _, pair := range pairs(from.addrs, to.addrs) {
		x := policy.Party{Endpoint: from.identity, Addr: pair[0]}
		y := policy.Party{Endpoint: to.identity, Addr: pair[1]}
		v := policy.Explain(held.InForce(), held.Namespaces, held.Default, x, y, target)
		e := explained{From: from.name, To: to.name, Port: target.String(), Allowed: v.Allowed}
		if !v.Self {
			e.Egress, e.Ingress = newSide(from.identity, v.Egress), newSide(to.identity, v.Ingress)
		}
		text := e.text(v.Self)
		if !slices.Contains(lines, text) {
			all, lines = append(all, e), append(lines, text)
		}
	}
	if len(all) == 0 {
		return fmt.Errorf("%s and %s have no addresses of one family", from.name, to.name)
	}
	for _, e := range []party{from, to} {
		if e.identity != nil && len(e.addrs) == 0 {
			a.warn([]string{fmt.Sprintf("the address of %s is not known: it is in no ipBlock here, and named ports of it are none", e.name)})
		}
	}
	return a.print(all, func(w io.Writer) { fmt.Fprint(w, strings.Join(lines, "")) })
}

// pairs are the addresses of one family that two ends have; an invalid one where they are not known.
func pairs(x, y []netip.Addr) (all [][2]netip.Addr) {
	unknown := []netip.Addr{{}}
	if len(x) == 0 {
		x = unknown
	}
	if len(y) == 0 {
		y = unknown
	}
	for _, p := range x {
		for _, q := range y {
			if !p.IsValid() || !q.IsValid() || p.Is4() == q.Is4() {
				all = append(all, [2]netip.Addr{p, q})
			}
		}
	}
	return all
}

func newSide(who *policy.Identity, s policy.Side) *explainedSide {
	if who == nil {
		return nil
	}
	e := explainedSide{Isolated: append([]string{}, s.Isolated...), Allows: []string{}}
	for _, g := range s.Allows {
		e.Allows = append(e.Allows, g.Policy+" "+g.Field)
	}
	switch isolated := strings.Join(s.Isolated, ", "); {
	case len(s.Isolated) == 0:
		e.text = "not isolated: no policy selects it in this direction"
	case len(s.Allows) > 0:
		e.text = "allowed by " + strings.Join(e.Allows, ", ")
	default:
		e.text = "isolated by " + isolated + "; nothing allows this"
	}
	return &e
}

func (e explained) text(self bool) string {
	verdict := "denied"
	if e.Allowed {
		verdict = "allowed"
	}
	text := fmt.Sprintf("%s: %s -> %s, %s\n", verdict, printable(e.From), printable(e.To), e.Port)
	if self {
		return text + "  a container always reaches itself\n"
	}
	for i, s := range []*explainedSide{e.Egress, e.Ingress} {
		if s != nil {
			text += fmt.Sprintf("  %s: %s\n", []string{"egress", "ingress"}[i], s.text)
		}
	}
	return text
}
