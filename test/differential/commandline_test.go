package differential

import (
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	helpCommand = regexp.MustCompile(`(?m)^ {3}([a-z]+) {2,}\S`)
	helpFlag    = regexp.MustCompile(`(?m)^ {2,3}(?:-([a-z]), )?--([a-z0-9-]+)( [A-Z\[]\S*| value)?(?:, -([a-z]))?( value)?(?: {2,}|\n)`)
)

// TestCommandLine: every command and flag that runc's help tells of is there, with the same short name, and takes
// a value or none as there.
func TestCommandLine(t *testing.T) {
	help := func(r Runtime, command ...string) string {
		out, err := exec.Command(r.Path, append(command, "--help")...).Output()
		if err != nil {
			t.Fatalf("%s %v --help: %v", r.Path, command, err)
		}
		return string(out)
	}
	commands := [][]string{nil}
	_, list, _ := strings.Cut(help(suite.ref), "\nCOMMANDS:\n")
	list, _, _ = strings.Cut(list, "\nGLOBAL OPTIONS:\n")
	for _, m := range helpCommand.FindAllStringSubmatch(list, -1) {
		commands = append(commands, []string{m[1]})
	}
	if len(commands) < 17 {
		t.Fatalf("of runc's commands these were found: %v", commands)
	}
	flags := 0
	for _, c := range commands {
		ref, own := helpFlags(help(suite.ref, c...)), helpFlags(help(suite.own, c...))
		for _, name := range slices.Sorted(maps.Keys(ref)) {
			flags++
			if got, ok := own[name]; !ok {
				t.Errorf("%v: --%s is not there", c, name)
			} else if got != ref[name] {
				t.Errorf("%v: --%s is %+v, with runc %+v", c, name, got, ref[name])
			}
		}
	}
	if flags < 80 {
		t.Errorf("of runc's flags only %d were found", flags)
	}
}

type helpedFlag struct {
	short string
	value bool
}

// helpFlags reads the flags out of a help text, of either kind: "--name value, -n value", "-n, --name VALUE".
func helpFlags(text string) map[string]helpedFlag {
	all := map[string]helpedFlag{}
	for _, m := range helpFlag.FindAllStringSubmatch(text, -1) {
		if m[2] != "help" {
			all[m[2]] = helpedFlag{short: m[1] + m[4], value: m[3]+m[5] != ""}
		}
	}
	return all
}
