package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
)

func (a *app) policyDenialsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "denials",
		Short: "Show what policies denied on this host, and why",
		Long: `Show what policies denied on this host, and why. How many packets they denied is counted always; which ones is
remembered, a few each second, only if overlayd's setting log-denied is true.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
			defer cancel()
			d, err := a.daemon().Denials(ctx)
			if err != nil {
				return err
			}
			return a.print(d, func(w io.Writer) { printDenials(w, d) })
		},
	}
}

func (a *app) daemon() *api.Client { return api.Dial(settings.Socket(a.settings.RunDir)) }

func printDenials(w io.Writer, d api.Denials) {
	if len(d.Last) > 0 {
		row(w, "TIME", "DIRECTION", "FROM", "TO", "PORT", "WHY")
	}
	for _, one := range d.Last {
		port := one.Protocol
		if one.Port != 0 {
			port = fmt.Sprintf("%d/%s", one.Port, one.Protocol)
		}
		row(w, one.At.Local().Format(time.TimeOnly), one.Direction, partyName(one.From), partyName(one.To), port, one.Why)
	}
	fmt.Fprintf(w, "%d packets denied by ingress policies, %d by egress policies\n", d.Counts.Ingress, d.Counts.Egress)
	if !d.Logged {
		fmt.Fprintln(w, "which ones is not remembered: set log-denied: true in overlayd's configuration, and restart it")
	}
}

func partyName(p api.Party) string {
	if p.Name == "" && p.Namespace == "" {
		return p.IP
	}
	return fmt.Sprintf("%s/%s (%s)", p.Namespace, p.Name, p.IP)
}

func (a *app) gatherDenials(ctx context.Context) ([]byte, error) {
	return gather(a.daemon().Denials(ctx))
}

func (a *app) gatherEndpoints(ctx context.Context) ([]byte, error) {
	return gather(a.daemon().Endpoints(ctx))
}

func (a *app) gatherPolicies(ctx context.Context) ([]byte, error) {
	held, err := a.policies(ctx)
	if err != nil {
		return nil, err
	}
	unreadable := map[string]string{}
	for key, err := range held.Unreadable {
		unreadable[key] = err.Error()
	}
	return gather(map[string]any{"policies": held.Policies, "namespaces": held.Namespaces, "default": held.Default, "unreadable": unreadable}, nil)
}

// gather is what was found, for people and programs.
func gather(v any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(v, "", "  ")
}
