package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// flags are those of a command, or the global ones. The syntax is that of Go's package
// flag: --name value, --name=value, with one dash or two, and for those that are true or
// false --name and --name=false. -- ends them.
type flags struct {
	list []flagSpec
	help bool
}

type flagSpec struct {
	name, short string
	value       string // what it takes, for the help; "" for true or false
	about       string
	set         func(string) error
}

func (f *flags) str(to *string, name, initial, value, about string) {
	*to = initial
	f.add(name, value, about, func(s string) error { *to = s; return nil })
}

func (f *flags) bool(to *bool, name, short, about string) {
	f.list = append(f.list, flagSpec{name: name, short: short, about: about, set: func(s string) (err error) {
		*to, err = strconv.ParseBool(s)
		return err
	}})
}

func (f *flags) int(to *int, name string, initial int, value, about string) {
	*to = initial
	f.add(name, value, about, func(s string) (err error) { *to, err = strconv.Atoi(s); return err })
}

// strs may be given several times.
func (f *flags) strs(to *[]string, name, value, about string) {
	f.add(name, value, about, func(s string) error { *to = append(*to, s); return nil })
}

// add declares a flag that takes a value.
func (f *flags) add(name, value, about string, set func(string) error) {
	f.list = append(f.list, flagSpec{name: name, value: value, about: about, set: set})
}

// short gives the flag that was declared last a name of one letter.
func (f *flags) short(name string) { f.list[len(f.list)-1].short = name }

func (f *flags) find(name string) *flagSpec {
	for i := range f.list {
		if f.list[i].name == name || f.list[i].short != "" && f.list[i].short == name {
			return &f.list[i]
		}
	}
	return nil
}

// parse sets the flags of args and returns the rest. With ordered, everything from the
// first argument on is the rest; otherwise flags may come after arguments.
func (f *flags) parse(args []string, ordered bool) (rest []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			return append(rest, args...), nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			rest = append(rest, arg)
			if ordered {
				return append(rest, args...), nil
			}
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		if name == "help" || name == "h" {
			f.help = true
			continue
		}
		fl := f.find(name)
		switch {
		case fl == nil:
			return nil, fmt.Errorf("flag %s is not known", arg)
		case given:
		case fl.value == "":
			value = "true"
		case len(args) == 0:
			return nil, fmt.Errorf("flag %s needs a value", arg)
		default:
			value, args = args[0], args[1:]
		}
		if err := fl.set(value); err != nil {
			var n *strconv.NumError
			if errors.As(err, &n) {
				err = n.Err
			}
			return nil, fmt.Errorf("flag --%s: value %q: %w", fl.name, value, err)
		}
	}
	return rest, nil
}

// usage writes the help of a command, or of the program, after what is wrong, if anything is.
func usage(w io.Writer, f flags, cmd *command, wrong error) int {
	b := &strings.Builder{}
	if wrong != nil {
		fmt.Fprintf(b, "incorrect usage: %v\n\n", wrong)
	}
	if cmd == nil {
		fmt.Fprintf(b, "Usage: orlop-oci [OPTION...] COMMAND [OPTION...] [ARGUMENT...]\n\nRuns containers from OCI bundles, on the spot, without a daemon.\n\nCommands:\n")
		for _, c := range commands {
			fmt.Fprintf(b, "  %-11s %s\n", c.name, c.about)
		}
		fmt.Fprintf(b, "\n`orlop-oci COMMAND --help` tells more.\n")
	} else {
		fmt.Fprintf(b, "Usage: orlop-oci %s [OPTION...] %s\n\n%s%s.\n", cmd.name, cmd.args, strings.ToUpper(cmd.about[:1]), cmd.about[1:])
	}
	if len(f.list) > 0 {
		fmt.Fprintf(b, "\nOptions:\n")
	}
	for _, l := range f.list {
		name := "--" + l.name
		if l.short != "" {
			name = "-" + l.short + ", " + name
		}
		if l.value != "" {
			name += " " + l.value
		}
		fmt.Fprintf(b, "  %-30s %s\n", name, l.about)
	}
	io.WriteString(w, b.String())
	if wrong != nil {
		return 1
	}
	return 0
}

// orDash returns the file of that name, or standard input for "-".
func orDash(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(name)
}
