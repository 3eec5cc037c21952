package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newManCommand returns `orlop man`, which works without a daemon.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual pages",
		Long: `Writes a manual page for each command into the directory, which is made: orlop.1, orlop-apply.1 and so on. They
say what --help says. Read one with: man ./orlop-apply.1`,
		Example: `  orlop man /usr/local/share/man/man1
  orlop man ./man`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeManual(cmd.Root(), args[0])
		},
	}
}

func writeManual(c *cobra.Command, dir string) error {
	if !c.IsAvailableCommand() && c.HasParent() {
		return nil
	}
	name := filepath.Join(dir, pageName(c)+".1")
	if err := atomicfile.Write(name, manualPage(c), 0o644, false); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	for _, sub := range c.Commands() {
		if err := writeManual(sub, dir); err != nil {
			return err
		}
	}
	return nil
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manualPage writes a command's page in the language of man(7).
func manualPage(c *cobra.Command) []byte {
	var b bytes.Buffer
	section := func(title string) { fmt.Fprintf(&b, ".SH %s\n", title) }
	fmt.Fprintf(&b, ".TH %q 1 \"\" %q \"Orlop\"\n", strings.ToUpper(pageName(c)), "orlop "+version)
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", roff(pageName(c)), roff(c.Short))
	section("SYNOPSIS")
	fmt.Fprintf(&b, ".B %s\n", roff(strings.TrimSuffix(c.UseLine(), " [flags]")))
	section("DESCRIPTION")
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	b.WriteString(literal(long))
	flags := func(title string, set *pflag.FlagSet) {
		if !set.HasAvailableFlags() {
			return
		}
		section(title)
		set.VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			word, usage := pflag.UnquoteUsage(f)
			name := "--" + f.Name
			if f.Shorthand != "" {
				name = "-" + f.Shorthand + ", " + name
			}
			if word != "" {
				word = " " + word
			}
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(name+word), roff(usage))
		})
	}
	flags("OPTIONS", c.NonInheritedFlags())
	flags("OPTIONS OF EVERY COMMAND", c.InheritedFlags())
	if c.Example != "" {
		section("EXAMPLES")
		fmt.Fprintf(&b, ".nf\n%s.fi\n", literal(c.Example))
	}
	var also []string
	if c.HasParent() {
		also = append(also, pageName(c.Parent()))
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			also = append(also, pageName(sub))
		}
	}
	if len(also) > 0 {
		section("SEE ALSO")
		for i, page := range also {
			sep := ","
			if i == len(also)-1 {
				sep = ""
			}
			fmt.Fprintf(&b, ".BR %s (1)%s\n", roff(page), sep)
		}
	}
	return b.Bytes()
}

// literal writes text line by line; an empty line begins a paragraph.
func literal(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text + "\n") {
		if line = strings.TrimRight(line, " \n"); line == "" {
			b.WriteString(".PP\n")
		} else {
			b.WriteString(roff(line) + "\n")
		}
	}
	return strings.TrimSuffix(b.String(), ".PP\n")
}

// roff writes a line so that nothing in it is a request or an escape, and hyphens stay
// what can be typed.
func roff(line string) string {
	line = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ").Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	return line
}
