package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// namespace is a namespace as it is printed.
type namespace struct {
	Name     string            `json:"name"`
	Labels   map[string]string `json:"labels"` // without the one that has its name
	Default  policy.Default    `json:"default"`
	Policies int               `json:"policies"`
}

func (a *app) namespacesCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "namespaces",
		Short: "Show the namespaces that policies speak of, and label them",
	}, a.namespacesListCommand(), a.namespacesLabelCommand())
}

func (a *app) namespacesListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the namespaces that somebody described, or that have policies",
		Long: `List the namespaces that somebody described, or that have policies. Others exist too: a namespace is wherever a container
says so.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			held, err := a.policies(cmd.Context())
			if err != nil {
				return err
			}
			count := map[string]int{}
			for name := range held.Namespaces {
				count[name] = 0
			}
			for _, p := range held.Policies {
				count[p.Namespace]++
			}
			list := []namespace{}
			for _, name := range slices.Sorted(maps.Keys(count)) {
				n := namespace{name, map[string]string{}, policy.DefaultOf(held.Namespaces, held.Default, name), count[name]}
				maps.Copy(n.Labels, held.Namespaces[name].Labels)
				list = append(list, n)
			}
			return a.print(list, func(w io.Writer) {
				row(w, "NAME", "DEFAULT", "POLICIES", "LABELS")
				for _, n := range list {
					labels := ""
					if len(n.Labels) > 0 {
						labels = selectorText(policy.Selector{MatchLabels: n.Labels})
					}
					row(w, n.Name, string(n.Default), fmt.Sprint(n.Policies), labels)
				}
			})
		},
	}
}

func (a *app) namespacesLabelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "label NAMESPACE (KEY=VALUE | KEY-)...",
		Short: "Set labels of a namespace, and take them off",
		Example: `  overlayctl namespaces label prod env=production
  overlayctl namespaces label prod env-`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{fmt.Errorf("missing argument: %s", []string{"NAMESPACE", "KEY=VALUE or KEY-"}[len(args)])}
			}
			if err := policy.ValidateNamespace(args[0]); err != nil {
				return usageError{err}
			}
			if err := changedLabels(map[string]string{}, args[1:]); err != nil {
				return usageError{err}
			}
			result := done{Kind: "Namespace", Name: args[0]}
			err := a.changePolicies(cmd.Context(), false, func(held *etcdstore.Policies) (c etcdstore.PolicyChange, err error) {
				n := policy.Namespace{Name: args[0], Labels: map[string]string{}, Default: held.Namespaces[args[0]].Default}
				maps.Copy(n.Labels, held.Namespaces[args[0]].Labels)
				if err := changedLabels(n.Labels, args[1:]); err != nil {
					return c, err // too many, with those that are there
				}
				result.Result = "labeled"
				if have, ok := held.Namespaces[n.Name]; ok && sameNamespace(have, n) {
					result.Result = "unchanged"
				}
				c.Namespaces = []policy.Namespace{n}
				return c, nil
			})
			if err != nil {
				return err
			}
			return a.printDone([]done{result}, false)
		},
	}
}

// changedLabels changes labels as key=value and key- say.
func changedLabels(labels map[string]string, changes []string) error {
	said := map[string]bool{}
	for _, text := range changes {
		key, value, err := parseLabelChange(text)
		if err != nil {
			return err
		}
		switch {
		case key == policy.NameLabel:
			return errors.New(policy.NameLabel + " is always the name of the namespace")
		case said[key]:
			return fmt.Errorf("label %q is said twice", key)
		case value != nil:
			labels[key] = *value
		default:
			delete(labels, key)
		}
		said[key] = true
	}
	return policy.ValidateLabels(labels)
}
