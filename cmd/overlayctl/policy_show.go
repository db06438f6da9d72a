package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/manifest"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func (a *app) policyListCommand() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the policies",
		Long: `List the policies, of one namespace with -n. With -o yaml or json they are a list that overlayctl policy apply and kubectl
take.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			held, err := a.policies(cmd.Context())
			if err != nil {
				return err
			}
			list := sorted(held.Policies, namespace)
			objects := []map[string]any{}
			for _, p := range list {
				o, err := manifest.Object(p)
				if err != nil {
					return err
				}
				objects = append(objects, o)
			}
			return a.print(manifest.List(objects), func(w io.Writer) { a.policyRows(w, list) })
		},
	}
	declareNamespace(cmd, &namespace, "`namespace` whose policies are meant (default: all)")
	return cmd
}

// sorted are the policies of a namespace, or all, by key.
func sorted(policies map[string]policy.Policy, namespace string) (list []policy.Policy) {
	for _, key := range slices.Sorted(maps.Keys(policies)) {
		if p := policies[key]; namespace == "" || p.Namespace == namespace {
			list = append(list, p)
		}
	}
	return list
}

func (a *app) policyRows(w io.Writer, list []policy.Policy) {
	header := []string{"NAMESPACE", "NAME", "SELECTS", "TYPES"}
	if a.output == "wide" {
		header = append(header, "INGRESS", "EGRESS")
	}
	row(w, header...)
	for _, p := range list {
		var types []string
		for _, t := range p.Spec.PolicyTypes {
			types = append(types, string(t))
		}
		cells := []string{p.Namespace, p.Name, selectorText(p.Spec.PodSelector), strings.Join(types, ",")}
		if a.output == "wide" {
			cells = append(cells, rules(p, policy.Ingress, len(p.Spec.Ingress)), rules(p, policy.Egress, len(p.Spec.Egress)))
		}
		row(w, cells...)
	}
}

// rules says how much a policy allows in a direction.
func rules(p policy.Policy, t policy.Type, n int) string {
	switch {
	case !p.Isolates(t):
		return ""
	case n == 0:
		return "nothing"
	}
	return plural(n, "rule")
}

// selectorText is a selector as kubectl prints it.
func selectorText(s policy.Selector) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		all = append(all, key+"="+s.MatchLabels[key])
	}
	for _, r := range s.MatchExpressions {
		switch r.Operator {
		case policy.Exists:
			all = append(all, r.Key)
		case policy.DoesNotExist:
			all = append(all, "!"+r.Key)
		case policy.In, policy.NotIn:
			all = append(all, fmt.Sprintf("%s %s (%s)", r.Key, strings.ToLower(string(r.Operator)), strings.Join(r.Values, ",")))
		}
	}
	if len(all) == 0 {
		return "all"
	}
	return strings.Join(all, ",")
}

// key is the policy that a person means: namespace/name, or a name alone, of the namespace of the command line or "default".
func (a *app) key(name, namespace string) (string, error) {
	ns, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok && namespace == "":
		return "default/" + name, nil
	case !ok:
		return namespace + "/" + name, nil
	case namespace != "" && ns != namespace:
		return "", usageError{fmt.Errorf("%s is not of the namespace %s", name, namespace)}
	}
	return ns + "/" + rest, nil
}

func noPolicy(held *etcdstore.Policies, key string) error {
	_, name, _ := strings.Cut(key, "/")
	for _, other := range slices.Sorted(maps.Keys(held.Policies)) {
		if p := held.Policies[other]; p.Name == name {
			return fmt.Errorf("no policy %s: there is %s, of another namespace (-n %s)", key, other, p.Namespace)
		}
	}
	return fmt.Errorf("no policy %s (see: overlayctl policy list)", key)
}

func (a *app) policyGetCommand() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Show one policy; with -o yaml, as it can be applied again",
		Example: `  overlayctl policy get -n dev deny-all-ingress
  overlayctl policy get dev/deny-all-ingress -o yaml`,
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completePolicy,
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := a.key(args[0], namespace)
			if err != nil {
				return err
			}
			held, err := a.policies(cmd.Context())
			if err != nil {
				return err
			}
			p, ok := held.Policies[key]
			if bad := held.Unreadable[etcdstore.PolicyKey(key)]; bad != nil {
				return fmt.Errorf("policy %s cannot be read: %w; apply it anew, or delete it", key, bad)
			}
			if !ok {
				return noPolicy(held, key)
			}
			o, err := manifest.Object(p)
			if err != nil {
				return err
			}
			return a.print(o, func(w io.Writer) { a.policyRows(w, []policy.Policy{p}) })
		},
	}
	declareNamespace(cmd, &namespace, "`namespace` of the policy (default: default)")
	return cmd
}

// completePolicy offers the policies that etcd holds.
func (a *app) completePolicy(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	held, err := a.policies(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return slices.Sorted(maps.Keys(held.Policies)), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) policyDefaultCommand() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "default [allow | deny]",
		Short: "Show or set what counts for containers that no policy selects",
		Long: `Show or set what counts for containers that no policy selects: of the whole network, or of a namespace with -n, which
comes before the network's. Deny is as if a policy selected all, in both directions, and allowed nothing: what other policies allow
still passes. Kubernetes has allow alone.`,
		Example: `  overlayctl policy default deny -n prod
  overlayctl policy default`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return arguments("allow or deny")(cmd, args)
			}
			return nil
		},
		ValidArgs: []string{string(policy.Allow), string(policy.Deny)},
		RunE: func(cmd *cobra.Command, args []string) error {
			if namespace != "" {
				if err := policy.ValidateNamespace(namespace); err != nil {
					return usageError{err}
				}
			}
			if len(args) == 0 {
				return a.showDefault(cmd.Context(), namespace)
			}
			d := policy.Default(args[0])
			if err := d.Validate(); err != nil {
				return usageError{err}
			}
			err := a.changePolicies(cmd.Context(), false, func(held *etcdstore.Policies) (c etcdstore.PolicyChange, err error) {
				if namespace == "" {
					c.Default = d
					return c, nil
				}
				n := policy.Namespace{Name: namespace, Labels: held.Namespaces[namespace].Labels, Default: d}
				c.Namespaces = []policy.Namespace{n}
				return c, nil
			})
			if err != nil {
				return err
			}
			return a.showDefault(cmd.Context(), namespace)
		},
	}
	declareNamespace(cmd, &namespace, "`namespace` that is meant (default: the network)")
	return cmd
}

func (a *app) showDefault(ctx context.Context, namespace string) error {
	held, err := a.policies(ctx)
	if err != nil {
		return err
	}
	d, of := policy.DefaultOf(held.Namespaces, held.Default, namespace), "the network"
	if namespace != "" {
		of = "namespace " + namespace
	}
	inherited := namespace != "" && held.Namespaces[namespace].Default == ""
	v := struct {
		Namespace string         `json:"namespace,omitempty"`
		Default   policy.Default `json:"default"`
		Inherited bool           `json:"inherited"` // from the network
	}{namespace, d, inherited}
	return a.print(v, func(w io.Writer) {
		if inherited {
			of += ", as the network has it"
		}
		fmt.Fprintf(w, "%s: default of %s\n", d, of)
	})
}

func (a *app) policyConfirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Say that the policies in etcd are those that are meant, after etcd was wiped or restored",
		Long: `Say that the policies in etcd are those that are meant, after etcd was wiped or restored: hosts keep the policies that
they knew until somebody does. Look at overlayctl policy list before: what is not in it is gone after this.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var n int
			err := a.ask(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) (err error) {
				for range policyTries {
					var held *etcdstore.Policies
					if held, err = s.Policies(ctx); err != nil {
						return err
					}
					_, n, _ = held.Lost()
					if err = s.ConfirmPolicies(ctx, held); !errors.Is(err, etcdstore.ErrConflict) {
						return err
					}
				}
				return err
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "confirmed: %s\n", plural(n, "policy"))
			return err
		},
	}
}
