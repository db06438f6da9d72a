// Package man writes the manual page of a program from its commands, so that it says what --help says.
package man

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// width is that of the options on the page, which is shown with an indentation on a terminal of 80 columns.
const width = 72

// Page is the page of a program for section 8 of the manual, in man(7)'s language. It shows root and every command
// below it that is not hidden.
func Page(root *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %s 8 \"\" \"%s\" \"System Manager's Manual\"\n", strings.ToUpper(root.Name()), text(root.Version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", text(root.Name()), text(root.Short))
	synopsis := root.Name() + " [flags]"
	if root.HasAvailableSubCommands() {
		synopsis = root.Name() + " command [flags]"
	}
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", text(synopsis))
	b.WriteString(".SH DESCRIPTION\n")
	describe(&b, root)
	if root.HasAvailableSubCommands() {
		b.WriteString(".SH COMMANDS\n")
		commands(&b, root)
	}
	return b.Bytes()
}

func commands(b *bytes.Buffer, parent *cobra.Command) {
	for _, cmd := range parent.Commands() {
		if !cmd.IsAvailableCommand() {
			continue
		}
		if cmd.HasAvailableSubCommands() { // does nothing by itself
			commands(b, cmd)
			continue
		}
		fmt.Fprintf(b, ".SS %s\n", text(cmd.UseLine()))
		describe(b, cmd)
	}
}

// describe writes what is said about one command and its own options.
func describe(b *bytes.Buffer, cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	about := cmd.Long
	if about == "" {
		about = cmd.Short + "."
	}
	for paragraph := range strings.SplitSeq(about, "\n\n") {
		fmt.Fprintf(b, ".PP\n%s\n", text(strings.TrimSpace(paragraph)))
	}
	if cmd.HasExample() {
		verbatim(b, cmd.Example)
	}
	if options := cmd.LocalFlags(); options.HasAvailableFlags() {
		verbatim(b, options.FlagUsagesWrapped(width))
	}
}

func verbatim(b *bytes.Buffer, s string) {
	fmt.Fprintf(b, ".PP\n.nf\n%s\n.fi\n", text(strings.TrimRight(s, "\n")))
}

// text escapes what troff would take for its own: a backslash, a hyphen (it breaks lines there, and shows another
// character), and a dot or quote at the start of a line.
func text(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`, "\n.", "\n\\&.", "\n'", "\n\\&'").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
