package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// treeWidth bounds a line of a tree: what is longer is cut, and ends in …
const treeWidth = 110

// branch is one line of a tree, and what hangs on it.
type branch struct {
	cells    []cell
	children []*branch
}

// add hangs a line on b, and returns it.
func (b *branch) add(cells ...cell) *branch {
	child := &branch{cells: cells}
	b.children = append(b.children, child)
	return child
}

func (b *branch) addf(format string, args ...any) *branch {
	return b.add(cell{text: fmt.Sprintf(format, args...)})
}

// tree adds a tree to the output, with its root as a line of its own.
func (t *table) tree(root *branch) {
	t.branchLine("", root)
	t.twigs("", root)
}

func (t *table) twigs(prefix string, b *branch) {
	for i, child := range b.children {
		fork, below := "├─ ", "│  "
		if i == len(b.children)-1 {
			fork, below = "└─ ", "   "
		}
		t.branchLine(prefix+fork, child)
		t.twigs(prefix+below, child)
	}
}

func (t *table) branchLine(prefix string, b *branch) {
	var line strings.Builder
	line.WriteString(t.paint(dim, prefix))
	left := treeWidth - utf8.RuneCountInString(prefix)
	for i, c := range b.cells {
		text := printable(c.text)
		if i > 0 {
			text = " " + text
		}
		n := utf8.RuneCountInString(text)
		full := n > left || (n == left && i < len(b.cells)-1)
		if full {
			text = string([]rune(text)[:max(0, left-1)]) + "…"
		}
		line.WriteString(t.paint(c.style, text))
		if full {
			break
		}
		left -= n
	}
	t.rows = append(t.rows, []cell{{text: line.String(), line: true}})
}
