package man_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/man"
)

func nothing(*cobra.Command, []string) {}

func TestPage(t *testing.T) {
	t.Parallel()
	root := &cobra.Command{Use: "tool", Short: "Do things", Version: "1.2-rc", Long: "One.\n\n.two \\ OVER_LAY_D\n'three"}
	root.PersistentFlags().String("dir-name", "/x", "`where` to do them")
	group := &cobra.Command{Use: "leaf", Short: "Leaves"}
	group.AddCommand(
		&cobra.Command{Use: "get NAME", Short: "Get one", Example: "  tool leaf get a", Run: nothing},
		&cobra.Command{Use: "secret", Short: "Not shown", Hidden: true, Run: nothing},
	)
	root.AddCommand(group)
	const want = `.TH TOOL 8 "" "1.2\-rc" "System Manager's Manual"
.SH NAME
tool \- Do things
.SH SYNOPSIS
.B tool command [flags]
.SH DESCRIPTION
.PP
One.
.PP
\&.two \e OVER_LAY_D
\&'three
.PP
.nf
      \-\-dir\-name where   where to do them (default "/x")
  \-h, \-\-help             help for tool
  \-v, \-\-version          version for tool
.fi
.SH COMMANDS
.SS tool leaf get NAME
.PP
Get one.
.PP
.nf
  tool leaf get a
.fi
.PP
.nf
  \-h, \-\-help   help for get
.fi
`
	if diff := cmp.Diff(want, string(man.Page(root))); diff != "" {
		t.Errorf("page (-want +got):\n%s", diff)
	}
}
