package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

func psCommand(f *flags) func(*app, []string) error {
	var format string
	f.str(&format, "format", "table", "FORMAT", "table or json")
	f.short("f")
	return func(a *app, args []string) error {
		if format != "table" && format != "json" {
			return fmt.Errorf("--format %s: use table or json", format)
		}
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		pids, err := c.Processes()
		if err != nil {
			return err
		}
		if format == "json" {
			if pids == nil {
				pids = []int{}
			}
			return json.NewEncoder(os.Stdout).Encode(pids)
		}
		o := args[1:]
		if len(o) == 0 {
			o = []string{"-ef"}
		}
		out, err := exec.Command("ps", o...).Output()
		if err != nil {
			var e *exec.ExitError
			if errors.As(err, &e) && len(e.Stderr) > 0 {
				return fmt.Errorf("ps: %w: %s", err, strings.TrimSpace(string(e.Stderr)))
			}
			return fmt.Errorf("ps: %w", err)
		}
		text, err := choose(string(out), pids)
		if err != nil {
			return err
		}
		_, err = os.Stdout.WriteString(text)
		return err
	}
}

// choose keeps the heading of ps's output and the lines of those processes.
func choose(out string, pids []int) (string, error) {
	lines := strings.SplitAfter(out, "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return "", errors.New("ps: its output has no column PID: choose options that show it")
	}
	text := lines[0]
	for _, l := range lines[1:] {
		w := strings.Fields(l)
		if len(w) <= column {
			continue
		}
		pid, err := strconv.Atoi(w[column])
		if err != nil {
			return "", fmt.Errorf("ps: column PID has %q", w[column])
		}
		if slices.Contains(pids, pid) {
			text += l
		}
	}
	return text, nil
}
