package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
)

// logger writes messages as callers of a runtime read them: lines with time, level and
// msg, of which containerd and podman take the last error for the reason of a failure.
type logger struct {
	*slog.Logger
	toStderr bool
}

func newLogger(path, format string, debug bool) (*logger, error) {
	var w io.Writer = os.Stderr
	l := &logger{toStderr: path == "" || path == "/dev/stderr"}
	if !l.toStderr {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
		w = f
	}
	// Standard error is also the program's: there are only errors there.
	level := slog.LevelInfo
	if l.toStderr {
		level = slog.LevelError
	}
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch a.Key {
		case slog.LevelKey:
			a.Value = slog.StringValue(strings.ToLower(strings.Replace(a.Value.String(), "WARN", "WARNING", 1)))
		case slog.TimeKey:
			a.Value = slog.StringValue(a.Value.Time().Format(time.RFC3339))
		}
		return a
	}}
	if debug {
		o.Level = slog.LevelDebug
	}
	switch format {
	case "text":
		l.Logger = slog.New(slog.NewTextHandler(w, o))
	case "json":
		l.Logger = slog.New(slog.NewJSONHandler(w, o))
	default:
		return nil, fmt.Errorf("--log-format %s: use text or json", format)
	}
	return l, nil
}

// fatal writes why the command failed, to standard error too if messages go to a file.
func (l *logger) fatal(err error) {
	l.Log(context.Background(), slog.LevelError, err.Error())
	if !l.toStderr {
		fmt.Fprintln(os.Stderr, err)
	}
}
