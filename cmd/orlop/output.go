package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"
)

// now is replaced in tests.
var now = time.Now

// outputFlag adds -o with the formats allowed, the first being the default.
func outputFlag(cmd *cobra.Command, formats ...string) *string {
	o := &choice{value: formats[0], of: formats}
	cmd.Flags().VarP(o, "output", "o", "format: "+strings.Join(formats, ", "))
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return &o.value
}

// listFormats are those of every command that lists.
var listFormats = []string{"table", "wide", "json", "yaml"}

// choice is a flag with a few possible values.
type choice struct {
	value string
	of    []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return "format" }
func (c *choice) Set(s string) error {
	for _, v := range c.of {
		if s == v {
			c.value = s
			return nil
		}
	}
	return fmt.Errorf("must be one of: %s", strings.Join(c.of, ", "))
}

// column is one of a table's.
type column[T any] struct {
	title string
	wide  bool // only in wide tables
	cell  func(T) string
}

// printList prints a list in the format: json and yaml are arrays of the messages.
func printList[T proto.Message](w io.Writer, format string, list []T, columns []column[T]) error {
	switch format {
	case "json", "yaml":
		return printArray(w, format, list)
	}
	return printTable(w, format == "wide", list, columns)
}

func printTable[T any](w io.Writer, wide bool, list []T, columns []column[T]) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(cell func(column[T]) string) {
		var cells []string
		for _, c := range columns {
			if wide || !c.wide {
				cells = append(cells, cell(c))
			}
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	row(func(c column[T]) string { return c.title })
	for _, v := range list {
		row(func(c column[T]) string {
			if s := c.cell(v); s != "" {
				return clean(s)
			}
			return "-"
		})
	}
	return t.Flush()
}

// clean keeps what others wrote from moving the terminal's cursor or breaking a table.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

func printArray[T proto.Message](w io.Writer, format string, list []T) error {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, m := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		j, err := marshal(m)
		if err != nil {
			return err
		}
		b.Write(j)
	}
	b.WriteByte(']')
	return printJSON(w, format, b.Bytes())
}

func printMessage(w io.Writer, format string, m proto.Message) error {
	j, err := marshal(m)
	if err != nil {
		return err
	}
	return printJSON(w, format, j)
}

// marshal is compact, and the same for the same message: protojson alone is not.
func marshal(m proto.Message) ([]byte, error) {
	j, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, j); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func printJSON(w io.Writer, format string, j []byte) error {
	var b bytes.Buffer
	if format == "yaml" {
		y, err := yaml.JSONToYAML(j)
		if err != nil {
			return err
		}
		b.Write(y)
	} else {
		if err := json.Indent(&b, j, "", "  "); err != nil {
			return err
		}
		b.WriteByte('\n')
	}
	_, err := w.Write(b.Bytes())
	return err
}

// age is how long ago t is, in at most two units.
func age(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return duration(now().Sub(t.AsTime()))
}

func duration(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 10*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// size is n in binary units.
func size[N int64 | uint64](n N) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	if unit == "B" || f >= 100 {
		return fmt.Sprintf("%.0f %s", f, unit)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

// shortID is an ID for people.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

func joined(list []string) string { return strings.Join(list, ",") }
