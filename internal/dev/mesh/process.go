package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// process is one node. It ends when the pipe that its descriptor 3 reads from closes: when we close it, or when we are gone.
type process struct {
	region string
	file   string // node.yaml
	cmd    *exec.Cmd
	pipe   *os.File
	done   chan struct{} // closed once the process has ended
	err    error         // why; to be read after done
}

const parentFD = "3"

// startNode starts a node by its file and flags on top of it. Its log goes to log, line by line. It outlives ctx: stop ends all in
// order.
func startNode(ctx context.Context, binary, region, file string, log io.Writer, flags ...string) (*process, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start node of %s: %w", region, err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, append([]string{"node", "--config", file, "--parent-fd", parentFD}, flags...)...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own, so that Ctrl-C at the terminal reaches us alone, and we end the nodes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := &process{region: region, file: file, cmd: cmd, pipe: ours, done: make(chan struct{})}
	err = cmd.Start()
	if closeErr := theirs.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "start node of %s: %w", region, errors.Join(err, ours.Close()))
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) end()  { _ = p.pipe.Close() }       // a second time is no matter
func (p *process) kill() { _ = p.cmd.Process.Kill() } // it may have ended meanwhile

// outcome says how an ended process ended.
func (p *process) outcome() string {
	if p.err == nil {
		return "exit status 0"
	}
	return p.err.Error()
}

// startNodes starts the node of each region.
func (m *Mesh) startNodes(ctx context.Context) error {
	var flags []string
	if m.config.LogLevel != "" {
		flags = []string{"--log-level", m.config.LogLevel}
	}
	for i, region := range regions {
		log := &lines{out: m.config.Log, prefix: label(region, m.config.Color)}
		p, err := startNode(ctx, m.config.Binary, region, m.nodeFile(i), log, flags...)
		if err != nil {
			return err
		}
		m.processes = append(m.processes, p)
	}
	return nil
}

// died is the first node that has ended, as an error.
func (m *Mesh) died() error {
	for _, p := range m.processes {
		select {
		case <-p.done:
			return fault.New(fault.Unavailable, "the node of %s has ended (%s); its log above says why", p.region, p.outcome())
		default:
		}
	}
	return nil
}

func (m *Mesh) nodeFile(i int) string { return filepath.Join(m.dir, regions[i], "node.yaml") }
