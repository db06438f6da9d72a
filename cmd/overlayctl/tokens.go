package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/cmd/internal/enrol"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// token is a token as it is printed.
type token struct {
	ID      string    `json:"id"`
	State   string    `json:"state"` // valid, ended, revoked, used up
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"` // 0: any number
	Used    int       `json:"used"`
	Token   string    `json:"token,omitempty"` // of a new one
}

func (a *app) tokensCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "tokens",
		Short: "Make, list and revoke the tokens by which hosts join",
		Long:  "Make, list and revoke the tokens by which hosts join: as root, on a host that runs etcd for the network.",
	}, a.tokensCreateCommand(), a.tokensListCommand(), a.tokensRevokeCommand())
}

func (a *app) tokensCreateCommand() *cobra.Command {
	var ttl time.Duration
	var uses int
	var member bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token, and print the command by which hosts join",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case ttl < time.Minute:
				return usageError{fmt.Errorf("--ttl: %s is too short: at least a minute", ttl)}
			case uses < 0:
				return usageError{fmt.Errorf("--uses: %d is negative", uses)}
			case a.settings.JoinListen == "":
				return errors.New("no host can join here, join-listen is not set: \"overlayctl init\" does, on the host that runs etcd")
			}
			ca, err := certs.Read(a.settings.Etcd.CAFile)
			if err != nil {
				return err
			}
			if member {
				uses = cmp.Or(uses, 1)
			}
			var made enrol.Token
			err = a.askAll(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) (err error) {
				made, err = enrol.CreateToken(ctx, s, certs.Fingerprint(ca), a.now(), ttl, enrol.TokenRecord{Uses: uses, Member: member})
				return err
			})
			if err != nil {
				return err
			}
			t := token{ID: made.ID, State: "valid", Expires: a.now().Add(ttl).UTC().Truncate(time.Second), Uses: uses, Token: made.String()}
			return a.print(t, func(w io.Writer) {
				how := ""
				if member {
					how = " --member"
				}
				fmt.Fprintf(w, "overlayctl join %s%s --token %s\n", a.joinTarget(), how, made)
			})
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", day, "how long it lets hosts join")
	cmd.Flags().BoolVar(&member, "member", false, "for a host that is to run etcd too, and gets the CA's key; once, unless --uses says otherwise")
	cmd.Flags().IntVar(&uses, "uses", 0, "how many hosts may join by it; 0: any number")
	return cmd
}

// joinTarget is where other hosts reach this one.
func (a *app) joinTarget() string {
	host, _, _ := net.SplitHostPort(settings.ListenAddress(a.settings.EtcdEmbeddedListen))
	_, port, _ := net.SplitHostPort(a.settings.JoinListen)
	if host == "" {
		host = "ADDRESS"
	}
	if port != enrol.DefaultPort {
		host = net.JoinHostPort(host, port)
	}
	return host
}

func (a *app) tokensListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tokens, and those that ended within a week",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var records []enrol.TokenRecord
			err := a.askAll(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) (err error) {
				records, err = enrol.Tokens(ctx, s)
				return err
			})
			if err != nil {
				return err
			}
			list := []token{}
			for _, r := range records {
				state := r.State(a.now())
				if state == "" {
					state = "valid"
				}
				list = append(list, token{ID: r.ID, State: state, Expires: r.Expires, Uses: r.Uses, Used: r.Used})
			}
			return a.print(list, func(w io.Writer) {
				row(w, "ID", "STATE", "ENDS", "USED")
				for _, t := range list {
					used := strconv.Itoa(t.Used)
					if t.Uses > 0 {
						used += " of " + strconv.Itoa(t.Uses)
					}
					row(w, t.ID, t.State, t.Expires.Format(time.RFC3339), used)
				}
			})
		},
	}
}

func (a *app) tokensRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a token at once; hosts that have joined by it stay",
		Args:  arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			if t, err := enrol.ParseToken(id); err == nil { // the whole of it was given
				id = t.ID
			}
			err := a.askAll(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) error { return enrol.RevokeToken(ctx, s, id) })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "revoked %s\n", printable(id))
			return err
		},
	}
}
