// Command guest is the init of the test machine: it mounts what an ordinary
// distribution would, loads modules, runs one command, and hands its exit code back to
// the host. Under other names it is the machine's modprobe, and what systemd starts in
// order to run the command.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/test/vm/boot"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "modprobe":
		// The kernel calls it as: modprobe -q -- NAME
		if err := modprobe(os.Args[len(os.Args)-1]); err != nil {
			os.Exit(1)
		}
		return
	case "unit": // systemd's child
		c, err := readConfig(boot.Dir + boot.ConfigFile)
		if err != nil {
			fail(err)
		}
		finish(runCommand(c))
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is the init of Orlop's test machine; it is of use only there")
		os.Exit(2)
	}
	c, err := readConfig(boot.ConfigFile)
	if err != nil {
		fail(err)
	}
	if err := prepare(c); err != nil {
		fail(err)
	}
	if c.Systemd {
		fail(startSystemd(c))
	}
	finish(runCommand(c))
}

func readConfig(file string) (*boot.Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c := &boot.Config{}
	return c, json.Unmarshal(b, c)
}

// fail ends the machine with an error that is the harness's own.
func fail(err error) {
	finish(boot.Status{Error: err.Error()})
}

// finish sends the status and turns the machine off. QEMU runs with -no-reboot, so a
// restart ends it.
func finish(s boot.Status) {
	b, _ := json.Marshal(s)
	if f, err := openPort(boot.PortStatus); err == nil {
		f.Write(append(b, '\n'))
		f.Close()
	} else {
		fmt.Fprintf(os.Stderr, "orlop-vm: %s (and no port to say so: %v)\n", b, err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// openPort opens the virtio-serial port of that name. There is no udev to make links.
func openPort(name string) (*os.File, error) {
	list, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, f := range list {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == name {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(f)), os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("no virtio-serial port %s", name)
}
