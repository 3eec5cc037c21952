package main

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/orlop-io/orlop/internal/platform/container"
)

func stateCommand(f *flags) func(*app, []string) error {
	return func(a *app, args []string) error {
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		st, err := c.State()
		if err != nil {
			return err
		}
		data, err := json.MarshalIndent(st, "", "  ")
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(append(data, '\n'))
		return err
	}
}

func listCommand(f *flags) func(*app, []string) error {
	var format string
	var quiet bool
	f.str(&format, "format", "table", "FORMAT", "table or json")
	f.short("f")
	f.bool(&quiet, "quiet", "q", "show ids only")
	return func(a *app, _ []string) error {
		if format != "table" && format != "json" {
			return fmt.Errorf("--format %s: use table or json", format)
		}
		s, err := a.store()
		if err != nil {
			return err
		}
		all, err := s.List()
		if err != nil {
			return err
		}
		if quiet {
			for _, c := range all {
				fmt.Println(c.ID())
			}
			return nil
		}
		var states []container.State
		for _, c := range all {
			st, err := c.State()
			if err != nil {
				a.log.Warn("left out of the list", "container", c.ID(), "why", err)
				continue
			}
			states = append(states, st)
		}
		if format == "json" {
			return json.NewEncoder(os.Stdout).Encode(states)
		}
		w := tabwriter.NewWriter(os.Stdout, 12, 1, 3, ' ', 0)
		fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
		for _, s := range states {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.PID, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
		}
		return w.Flush()
	}
}
