package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/version"
)

// versions is the output of version.
type versions struct {
	Client string  `json:"client"`
	Daemon *string `json:"daemon"` // null: it does not answer
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of overlayctl and of the local daemon",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: version.String()}
			daemon := "not running"
			if status, err := a.askDaemon(cmd.Context()); err == nil {
				v.Daemon, daemon = &status.Version, status.Version
			}
			return a.print(v, func(w io.Writer) {
				row(w, "overlayctl", v.Client)
				row(w, "overlayd", daemon)
			})
		},
	}
}
