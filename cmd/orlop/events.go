package main

import (
	"fmt"
	"time"

	"connectrpc.com/connect"
	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

func (a *app) eventsCommand() *cobra.Command {
	req := &orlopv1.EventsRequest{}
	var from string
	cmd := &cobra.Command{
		Use:   "events [POD]",
		Short: "Show what happened to pods",
		Long: `Shows events, oldest first: all of a namespace, or those of one pod. With -w it goes on with what happens from
now; json is then one object to a line, yaml a document to each.`,
		Example: `  orlop events
  orlop events notes --since 1h
  orlop events -A -w -o json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completePods,
	}
	namespace := a.allNamespaces(cmd)
	format := outputFlag(cmd, listFormats...)
	cmd.Flags().BoolVarP(&req.Watch, "watch", "w", false, "go on with what happens from now")
	cmd.Flags().StringVar(&from, "since", "", "only what is younger than a duration (10m) or a time (RFC 3339)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Namespace = namespace()
		if len(args) == 1 {
			req.Pod = args[0]
		}
		var err error
		if req.Since, err = since(cmd, from); err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if !req.Watch {
			list, err := a.events(cmd.Context(), req)
			if err != nil {
				return err
			}
			return printList(out, *format, list, eventColumns(namespace() == ""))
		}
		stream, err := a.client().pods.Events(cmd.Context(), connect.NewRequest(req))
		if err != nil {
			return err
		}
		defer stream.Close()
		for stream.Receive() {
			switch *format {
			case "json":
				j, err := marshal(stream.Msg())
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(out, "%s\n", j)
				if err != nil {
					return err
				}
			case "yaml":
				fmt.Fprintln(out, "---")
				if err := printMessage(out, "yaml", stream.Msg()); err != nil {
					return err
				}
			default:
				if _, err := fmt.Fprintln(out, eventLine(stream.Msg(), true)); err != nil {
					return err
				}
			}
		}
		return stream.Err()
	}
	return cmd
}

func eventColumns(namespace bool) []column[*orlopv1.Event] {
	type event = *orlopv1.Event
	return []column[event]{
		{title: "AGE", cell: func(e event) string { return age(e.At) }},
		{title: "TIME", wide: true, cell: func(e event) string { return e.At.AsTime().Local().Format(time.RFC3339) }},
		{title: "TYPE", cell: event.GetType},
		{title: "REASON", cell: event.GetReason},
		{title: "NAMESPACE", wide: !namespace, cell: event.GetNamespace},
		{title: "OBJECT", cell: eventObject},
		{title: "POD-ID", wide: true, cell: func(e event) string { return shortID(e.PodId) }},
		{title: "MESSAGE", cell: eventMessage},
	}
}

func eventObject(e *orlopv1.Event) string {
	if e.Container != "" {
		return e.Pod + "/" + e.Container
	}
	return e.Pod
}

func eventMessage(e *orlopv1.Event) string {
	if e.Count > 1 {
		return fmt.Sprintf("%s (%d times)", e.Message, e.Count)
	}
	return e.Message
}

// eventLine is an event on a line of its own.
func eventLine(e *orlopv1.Event, object bool) string {
	what := ""
	if object {
		what = fmt.Sprintf("%-24s ", qualified(e.Namespace, eventObject(e)))
	} else if e.Container != "" {
		what = e.Container + ": "
	}
	return clean(fmt.Sprintf("%s %-7s %-18s %s%s", e.At.AsTime().Local().Format("15:04:05"), e.Type, e.Reason, what, eventMessage(e)))
}
