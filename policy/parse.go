package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"strings"
)

// MaxValue is how long a policy may be as etcd has it, in bytes: etcd takes no request above 1.5 MiB.
const MaxValue = 1 << 20

// Key names the policy: namespace/name.
func (p Policy) Key() string { return p.Namespace + "/" + p.Name }

// ParsePolicy reads a policy as etcd has it at a key (namespace/name), strictly: what this version does not know could be what
// makes it narrow. The error names neither the key nor etcd.
func ParsePolicy(key string, value []byte) (Policy, error) {
	var p Policy
	if err := strict(value, &p); err != nil {
		return Policy{}, err
	}
	if p.Key() != key {
		return Policy{}, fmt.Errorf("it calls itself %s", brief(p.Key()))
	}
	if len(p.Spec.PolicyTypes) == 0 {
		return Policy{}, Problem{"spec.policyTypes", "Required value"} // defaults are filled in by who writes
	}
	if bad := p.Validate(); len(bad) > 0 {
		return Policy{}, bad[0]
	}
	for field, block := range p.Blocks() {
		for _, text := range append([]string{block.CIDR}, block.Except...) {
			if warning := WarnCIDR(text); warning != "" {
				return Policy{}, Problem{field, warning}
			}
		}
	}
	return p, nil
}

// ParseNamespace reads a namespace as etcd has it at its name, strictly.
func ParseNamespace(name string, value []byte) (Namespace, error) {
	var n Namespace
	if err := strict(value, &n); err != nil {
		return Namespace{}, err
	}
	if n.Name != name {
		return Namespace{}, fmt.Errorf("it calls itself %s", brief(n.Name))
	}
	return n, n.Validate()
}

// Validate returns an error if no namespace can be so.
func (n Namespace) Validate() error {
	if err := ValidateNamespace(n.Name); err != nil {
		return err
	}
	if n.Default != "" {
		if err := n.Default.Validate(); err != nil {
			return err
		}
	}
	return ValidateLabels(n.Labels)
}

// Validate returns an error if d is neither allow nor deny.
func (d Default) Validate() error {
	if d != Allow && d != Deny {
		return fmt.Errorf("policy default %s: it can be allow or deny", brief(string(d)))
	}
	return nil
}

// ParseDefault reads what counts in the network for endpoints that no policy selects, as etcd has it. What cannot be read denies.
func ParseDefault(value []byte) (Default, error) {
	var d NetworkDefault
	err := json.Unmarshal(value, &d)
	if err == nil {
		err = d.Default.Validate()
	}
	if err != nil {
		return Deny, err
	}
	return d.Default, nil
}

// Closed stands for a policy, by its key, that cannot be read: it isolates all of its namespace, and allows nothing.
func Closed(key string) (p Policy) {
	p.Namespace, p.Name, _ = strings.Cut(key, "/")
	p.Spec.PolicyTypes = []Type{Ingress, Egress}
	return p
}

func strict(value []byte, into any) error {
	if len(value) > MaxValue {
		return fmt.Errorf("%d bytes: it can have %d", len(value), MaxValue)
	}
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// ParseCIDR reads a block of addresses as the API server does: host bits do not count, and IPv4 written as IPv6 is IPv4. The error
// is in its words.
func ParseCIDR(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, errors.New("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// WarnCIDR says what the API server warns of in a block that [ParseCIDR] reads; empty: nothing.
func WarnCIDR(text string) string {
	p, err := ParseCIDR(text)
	if err != nil || p.String() == text {
		return ""
	}
	written := netip.MustParsePrefix(text)
	addr := written.Addr().Unmap()
	switch {
	case written.Addr().Is4In6():
		return fmt.Sprintf("non-standard CIDR value %q is invalid: use %q", text, p)
	case addr != p.Addr():
		return fmt.Sprintf("CIDR value %q is ambiguous in this context (should be %q or %q?)", text, p, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return fmt.Sprintf("IPv6 CIDR value %q should be in RFC 5952 canonical format (%q)", text, p)
}

// Blocks yields the blocks of all rules, by field.
func (p *Policy) Blocks() iter.Seq2[string, *IPBlock] {
	return func(yield func(string, *IPBlock) bool) {
		goOn := true
		peers := func(rule string, all []Peer) {
			for i, peer := range all {
				if peer.IPBlock != nil && goOn {
					goOn = yield(fmt.Sprintf("%s[%d].ipBlock", rule, i), peer.IPBlock)
				}
			}
		}
		for i, r := range p.Spec.Ingress {
			peers(fmt.Sprintf("spec.ingress[%d].from", i), r.From)
		}
		for i, r := range p.Spec.Egress {
			peers(fmt.Sprintf("spec.egress[%d].to", i), r.To)
		}
	}
}
