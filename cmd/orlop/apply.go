package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (a *app) applyCommand() *cobra.Command {
	var paths []string
	var wait, dry bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Make what manifests say so",
		Long: `Applies manifests of v1 Pods, PersistentVolumeClaims, ConfigMaps and Secrets, in YAML or JSON, as many to a
file as you like. Everything is checked first: if anything is wrong, every problem is said and nothing is done.

With --wait the command ends when every pod is ready or has succeeded. While it waits it says each change on
standard error; at the timeout it says what holds each pod up, with its last events, and exits with 124.`,
		Example: `  orlop apply -f examples/notes.yaml --wait
  orlop apply -f manifests/ --dry-run
  cat pod.yaml | orlop apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			files, err := readFiles(cmd, paths)
			if err != nil {
				return err
			}
			begin := time.Now()
			res, err := call(cmd.Context(), a.client().manifests.Apply, &orlopv1.ApplyRequest{Files: files, Namespace: a.namespace, DryRun: dry})
			if err != nil {
				return err
			}
			failed := printResults(cmd.OutOrStdout(), cmd.ErrOrStderr(), res.Results)
			if wait && !dry {
				var pods []*orlopv1.Ref
				for _, r := range res.Results {
					if r.Ref.GetKind() == "Pod" && r.Change != "" {
						pods = append(pods, r.Ref)
					}
				}
				if err := a.wait(cmd.Context(), cmd.ErrOrStderr(), pods, begin, timeout); err != nil {
					return err
				}
			}
			return failed
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&paths, "filename", "f", nil, "manifest: a file, a directory (its .yaml, .yml and .json files), or - for standard input; may be repeated")
	f.BoolVar(&wait, "wait", false, "until every pod is ready or has succeeded")
	f.DurationVar(&timeout, "timeout", 2*time.Minute, "how long --wait waits")
	f.BoolVar(&dry, "dry-run", false, "check only")
	return cmd
}

// readFiles reads what -f names.
func readFiles(cmd *cobra.Command, paths []string) ([]*orlopv1.File, error) {
	if len(paths) == 0 {
		return nil, usage(cmd, "name the manifests with -f FILE, -f DIR or -f -")
	}
	var files []*orlopv1.File
	read := func(name string) error {
		content, err := os.ReadFile(name)
		files = append(files, &orlopv1.File{Name: name, Content: content})
		return err
	}
	for _, p := range paths {
		if p == "-" {
			content, err := io.ReadAll(cmd.InOrStdin())
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}
			files = append(files, &orlopv1.File{Name: "standard input", Content: content})
			continue
		}
		info, err := os.Stat(p)
		if err != nil {
			return nil, fileError(err)
		}
		if !info.IsDir() {
			if err := read(p); err != nil {
				return nil, err
			}
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return nil, err
		}
		found := false
		for _, e := range entries {
			if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
				found = true
				if err := read(filepath.Join(p, e.Name())); err != nil {
					return nil, err
				}
			}
		}
		if !found {
			return nil, errs.New(errs.NotFound, "directory %s holds no .yaml, .yml or .json file", p)
		}
	}
	return files, nil
}

// fileError gives a missing file its kind.
func fileError(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errs.As(errs.NotFound, err)
	}
	return err
}

// kindWord is how the command line writes a kind.
func kindWord(kind string) string {
	if kind == "PersistentVolumeClaim" {
		return "pvc"
	}
	return strings.ToLower(kind)
}

func refWord(r *orlopv1.Ref) string {
	s := kindWord(r.GetKind()) + "/" + r.GetName()
	if ns := r.GetNamespace(); ns != "" && ns != "default" {
		s += " -n " + ns
	}
	return s
}

// printResults prints what became of each object. The error is the first object's that has one.
func printResults(out, talk io.Writer, results []*orlopv1.ObjectResult) error {
	var failed error
	for _, r := range results {
		if r.Change != "" {
			fmt.Fprintf(out, "%s %s\n", refWord(r.Ref), r.Change)
			if r.Message != "" {
				fmt.Fprintf(talk, "%s: %s\n", refWord(r.Ref), clean(r.Message))
			}
			continue
		}
		at := ""
		if r.File != "" {
			at = fmt.Sprintf("%s:%d: ", r.File, r.Line)
		}
		fmt.Fprintf(talk, "%s%s: %s\n", at, refWord(r.Ref), r.Message)
		if failed == nil {
			failed = &exitError{exitCode(r.ErrorKind)}
		}
	}
	return failed
}

// wait waits until the pods are ready or have succeeded.
func (a *app) wait(ctx context.Context, talk io.Writer, refs []*orlopv1.Ref, begin time.Time, timeout time.Duration) error {
	said := make([]string, len(refs))
	last := make([]*orlopv1.Pod, len(refs))
	done := make([]bool, len(refs))
	deadline := time.After(timeout)
	var failed error
	for {
		left := 0
		for i, r := range refs {
			if done[i] {
				continue
			}
			res, err := call(ctx, a.client().pods.Get, &orlopv1.GetPodRequest{Namespace: r.Namespace, Name: r.Name})
			if err != nil {
				return err
			}
			p := res.Pod
			last[i] = p
			if s := podState(p); s != said[i] {
				said[i] = s
				fmt.Fprintf(talk, "%6.1fs  %s %s\n", time.Since(begin).Seconds(), refWord(r), s)
			}
			switch {
			case p.Phase == "Failed":
				done[i], failed = true, &exitError{exitFailure}
				a.printLast(ctx, talk, p)
			case p.Phase == "Succeeded", p.Phase == "Running" && p.Ready && p.DeletedAt == nil:
				done[i] = true
			default:
				left++
			}
		}
		if left == 0 {
			return failed
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			fmt.Fprintf(talk, "orlop: not ready after %s:\n", timeout)
			for i, p := range last {
				if !done[i] {
					fmt.Fprintf(talk, "%s %s\n", refWord(refs[i]), podState(p))
					a.printLast(ctx, talk, p)
				}
			}
			return &exitError{exitTimeout}
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// podState is a pod's status, and why it is not ready.
func podState(p *orlopv1.Pod) string {
	s := fmt.Sprintf("%s, %s ready", p.Status, readyCount(p))
	why := func(what, reason, message string) {
		if reason == "" && message == "" {
			return
		}
		s += "; " + what + strings.TrimPrefix(strings.TrimSuffix(reason+": "+message, ": "), ": ")
	}
	why("", p.Reason, p.Message)
	for _, c := range p.Containers {
		if !c.Ready && c.State != "running" && c.Reason != "Completed" {
			why(c.Name+": ", c.Reason, c.Message)
		}
	}
	return clean(s)
}

// printLast prints the last events of a pod.
func (a *app) printLast(ctx context.Context, talk io.Writer, p *orlopv1.Pod) {
	events, err := a.events(ctx, &orlopv1.EventsRequest{Namespace: p.Namespace, Pod: p.Name})
	if err != nil || len(events) == 0 {
		return
	}
	for _, e := range events[max(0, len(events)-8):] {
		fmt.Fprintf(talk, "    %s\n", eventLine(e, false))
	}
}

// events collects a stream of events that ends.
func (a *app) events(ctx context.Context, req *orlopv1.EventsRequest) ([]*orlopv1.Event, error) {
	stream, err := a.client().pods.Events(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var list []*orlopv1.Event
	for stream.Receive() {
		list = append(list, stream.Msg())
	}
	return list, stream.Err()
}

// since turns a duration or a time into a time.
func since(cmd *cobra.Command, s string) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return timestamppb.New(now().Add(-d)), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return nil, usage(cmd, "--since takes a duration like 10m or a time like 2026-01-02T15:04:05Z, not %q", s)
	}
	return timestamppb.New(t), nil
}
