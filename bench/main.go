// Command bench measures Orlop beside what the distribution packages (containerd
// with runc, podman, runc, crun), in interleaved rounds of one run, and writes
// docs/benchmarks.md with a line for each target.
//
// It runs as root. Everything that it starts lives in namespaces of its own (see
// isolate.go), so that the run, however it ends, leaves nothing on the machine.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	out, only, dir, bin string
	asJSON, vm, host    bool
	rounds              int
	starts              int // containers per round
	pods                int // pods per round
	idle                int // pods left idle
	parallel            int // containers at once
	soak                int // containers one after another, for what a start leaves behind
	pulls               bool
	files, mib          int // of the image that is pulled
	settle              time.Duration
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.out, "out", "", "file to write the page to; standard output where empty")
	f.StringVar(&o.only, "only", "", "comma-separated names of what to measure (orlop, orlop-cri, orlop-oci, containerd, podman, runc, crun)")
	f.StringVar(&o.dir, "dir", "/var/tmp/orlop-bench", "directory for everything that is made; it is removed before and after")
	f.StringVar(&o.bin, "bin", "bin", "directory of this tree's binaries")
	f.BoolVar(&o.asJSON, "json", false, "print what was measured instead of the page")
	f.BoolVar(&o.vm, "vm", true, "measure OCI command lines on a cgroup-v2 machine too, which QEMU emulates")
	f.BoolVar(&o.host, "host", true, "measure on this host; with -host=false only on the cgroup-v2 machine, which takes two minutes")
	f.IntVar(&o.rounds, "rounds", 3, "interleaved rounds")
	f.IntVar(&o.starts, "starts", 20, "containers per round; 0 leaves single containers out")
	f.IntVar(&o.pods, "pods", 10, "pods per round; 0 leaves pods out")
	f.IntVar(&o.idle, "idle", 200, "idle pods for rate and memory")
	f.IntVar(&o.parallel, "parallel", 100, "containers at once")
	f.IntVar(&o.soak, "soak", 10_000, "containers one after another, to see whether memory stays")
	f.BoolVar(&o.pulls, "pulls", true, "measure pulls")
	f.IntVar(&o.files, "files", 40_000, "files of the image that is pulled")
	f.IntVar(&o.mib, "mib", 400, "MiB of the image that is pulled")
	f.DurationVar(&o.settle, "settle", 10*time.Second, "how long a runtime is left alone before its memory is read")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return o, err
	}
	o.dir, err = filepath.Abs(o.dir)
	return o, err
}

func (o options) wants(name string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), name)
}

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

// run is the program, in whichever stage of isolation this process is.
func run(args []string, stdout io.Writer) int {
	o, err := parse(args, os.Stderr)
	if err != nil {
		return 2
	}
	switch os.Getenv(stageVariable) {
	case stageInit:
		return initStage(args)
	case stageMeasure:
		err = measureStage(context.Background(), o)
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		err = outside(ctx, o, args, stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// outside has the run made in its namespaces, and writes the page from what it brings.
func outside(ctx context.Context, o options, args []string, stdout io.Writer) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("run as root (make bench)")
	}
	r := &results{At: time.Now().UTC(), Machine: machine(), Rounds: o.rounds, Starts: o.starts}
	if o.host {
		var err error
		if r, err = isolated(ctx, o, args); err != nil {
			return err
		}
	}
	if o.vm && o.starts > 0 {
		var err error
		if r.V2, err = measureInVM(ctx, o); err != nil {
			return err
		}
	}
	if o.asJSON {
		return json.NewEncoder(stdout).Encode(r)
	}
	var page strings.Builder
	r.write(&page)
	if o.out == "" {
		_, err := io.WriteString(stdout, page.String())
		return err
	}
	return os.WriteFile(o.out, []byte(page.String()), 0o644)
}

// resultFile is where the measuring stage leaves what it found.
func (o options) resultFile() string { return filepath.Join(o.dir, "results.json") }

func measureStage(ctx context.Context, o options) error {
	r, err := measure(ctx, o)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(o.resultFile(), raw, 0o600)
}

var begun = time.Now()

// say tells on standard error how far the run is.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
}
