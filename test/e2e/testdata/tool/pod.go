package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// pod is what the tests of pods run and ask.
func pod(what string, arg []string) {
	switch what {
	case "exists": // FILE: tells by its end
		_, err := os.Stat(arg[0])
		must(err)
	case "touch":
		must(os.WriteFile(arg[0], nil, 0o644))
	case "rm":
		must(os.Remove(arg[0]))
	case "show": // FILE...: what is in them, or why not
		for _, f := range arg {
			b, err := os.ReadFile(f)
			if err != nil {
				b = []byte(err.Error())
			}
			fmt.Printf("%s: %s\n", f, strings.TrimSpace(string(b)))
		}
	case "fill": // DIR: how much fits into it, in KiB
		f, err := os.Create(filepath.Join(arg[0], "fill"))
		must(err)
		n := 0
		for block := make([]byte, 64<<10); ; n += 64 {
			if _, err := f.Write(block); err != nil {
				fmt.Println(n, err)
				break
			}
		}
		must(os.Remove(f.Name()))
	case "append": // FILE TEXT
		note(arg[0], arg[1])
	case "trap": // FILE NAME CODE: notes its start and the signal that ends it, with the code
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGINT)
		note(arg[0], arg[1]+" started")
		s := <-signals
		note(arg[0], arg[1]+" got "+s.String())
		code, _ := strconv.Atoi(arg[2])
		os.Exit(code)
	case "stubborn": // ignores what can be ignored
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("stubborn")
		time.Sleep(time.Hour)
	case "term": // PID
		pid, _ := strconv.Atoi(arg[0])
		must(syscall.Kill(pid, syscall.SIGTERM))
	case "eat": // memory, without end
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
		}
	case "echo":
		fmt.Println(strings.Join(arg, " "))
	case "env": // NAME...
		for _, name := range arg {
			fmt.Printf("%s=%s\n", name, os.Getenv(name))
		}
	case "namespaces":
		for _, ns := range []string{"net", "pid", "ipc", "uts", "mnt"} {
			to, err := os.Readlink("/proc/self/ns/" + ns)
			must(err)
			fmt.Println(to)
		}
	case "processes": // what each that can be seen was started as
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, d := range dirs {
			b, _ := os.ReadFile(d + "/cmdline")
			fmt.Println(filepath.Base(d), strings.ReplaceAll(string(b), "\x00", " "))
		}
	case "health": // KIND PORT FILE: is well while the file exists
		healthy(arg[0], arg[1], arg[2])
	default:
		fmt.Fprintln(os.Stderr, "what is", what)
		os.Exit(2)
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func note(file, text string) {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	must(err)
	_, err = fmt.Fprintln(f, text)
	must(err)
	must(f.Close())
}

func healthy(kind, port, file string) {
	well := func() bool { _, err := os.Stat(file); return err == nil }
	switch kind {
	case "http":
		must(http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !well() || r.Header.Get("X-Probe") != "yes" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})))
	case "tcp":
		var l net.Listener
		for ; ; time.Sleep(20 * time.Millisecond) {
			switch up := well(); {
			case up && l == nil:
				var err error
				l, err = net.Listen("tcp", ":"+port)
				must(err)
			case !up && l != nil:
				l.Close()
				l = nil
			}
		}
	case "grpc":
		l, err := net.Listen("tcp", ":"+port)
		must(err)
		s, h := grpc.NewServer(), health.NewServer()
		grpc_health_v1.RegisterHealthServer(s, h)
		go s.Serve(l)
		for ; ; time.Sleep(20 * time.Millisecond) {
			status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
			if well() {
				status = grpc_health_v1.HealthCheckResponse_SERVING
			}
			h.SetServingStatus("app", status)
		}
	}
}
