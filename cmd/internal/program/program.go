// Package program is what the command lines of the daemons have in common.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/cmd/internal/man"
	"github.com/overlayd/overlayd/cmd/internal/version"
)

// Exit codes, a promise to scripts.
const (
	Failed = 1
	Usage  = 2
)

// misuse is a command line that makes no sense.
type misuse struct{ error }

// Misuse marks err as that of a command line that makes no sense.
func Misuse(err error) error { return misuse{err} }

// Main runs a program until it is done, or told to end by SIGTERM or SIGINT, and exits.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", root.Name(), err)
		os.Exit(exitCode(err))
	}
}

func exitCode(err error) int {
	if _, ok := errors.AsType[misuse](err); ok {
		return Usage
	}
	return Failed
}

// Finish gives root, which has all its flags and commands, what every program has: --version, the hidden --man for packages, and
// errors that Main prints. Neither root nor its commands take arguments.
func Finish(root *cobra.Command, stdout, stderr io.Writer) *cobra.Command {
	root.Version, root.SilenceErrors, root.SilenceUsage = version.String(), true, true
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetVersionTemplate(root.Name() + " {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return Misuse(fmt.Errorf("%w: see %s --help", err, root.Name()))
	})
	root.CompletionOptions.DisableDefaultCmd = true
	for _, c := range append(root.Commands(), root) {
		c.Args = func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return Misuse(fmt.Errorf("unexpected argument %q: see %s --help", args[0], root.Name()))
			}
			return nil
		}
	}
	manual := root.Flags().Bool("man", false, "print the manual page, and exit")
	_ = root.Flags().MarkHidden("man") // the flag exists
	run := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *manual {
			_, err := stdout.Write(man.Page(root))
			return err
		}
		return run(cmd, args)
	}
	return root
}
