package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
)

func (a *app) fastPathCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "fast-path [auto | on | off]",
		Short: "Show which way packets go between containers of different hosts, and why, or have them go another",
		Long: `Show which way packets go between containers of different hosts, and why, or have them go another until the local daemon
starts again, or its configuration is reloaded: the setting fast-path is what counts then.

Fast packets pass the bridge, the routes and netfilter by, after the first of their connection went there. With "off" all go the
slow way, at once and with none lost: tcpdump sees them on the bridge and the overlay's link.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("unexpected argument %q", args[1])}
			}
			if len(args) == 1 {
				if _, err := api.ParseFastPathMode(args[0]); err != nil {
					return usageError{err}
				}
			}
			return nil
		},
		ValidArgs: []string{"auto", "on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.setFastPath(cmd.Context(), api.FastPathMode(args[0]))
			}
			s, err := a.askDaemon(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(s.FastPath, false, func(w io.Writer) { a.printFastPath(w, s.FastPath) })
		},
	}
}

func (a *app) setFastPath(ctx context.Context, mode api.FastPathMode) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return api.Dial(settings.Socket(a.settings.RunDir)).SetFastPath(ctx, mode)
}

// printFastPath writes the setting, what comes of it, the packets by their way, and the containers that are slow.
func (a *app) printFastPath(w io.Writer, f api.FastPath) {
	fields := []field{{"SETTING", string(f.Mode), plain}, statusFastPath(f)}
	for _, way := range slices.Sorted(maps.Keys(f.Packets)) {
		fields = append(fields, field{"PACKETS", fmt.Sprintf("%d %s", f.Packets[way], way), plain})
	}
	for _, c := range f.Slow {
		name := c.IP
		if name == "" {
			name = "link " + strconv.Itoa(c.Link)
		}
		fields = append(fields, field{"SLOW", name + ": " + c.Why, plain})
	}
	a.screen.sheet(w, fields)
}

// statusFastPath is one line. That it is off is no matter of concern where it may be, or the kernel cannot.
func statusFastPath(f api.FastPath) field {
	switch {
	case f.Off != "" && f.Mode == api.FastPathOn:
		return field{"FAST PATH", "off: " + f.Off, uneasy}
	case f.Off != "":
		return field{"FAST PATH", "off: " + f.Off, plain}
	}
	text := fmt.Sprintf("on, %s of peers, %s", plural(f.Peers, "subnet"), plural(f.Containers, "container"))
	if len(f.Slow) > 0 {
		text += fmt.Sprintf(" (%d slow)", len(f.Slow))
	}
	return field{"FAST PATH", text, good}
}
