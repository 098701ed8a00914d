package seal

// At has a rotation of d call step where it might be killed.
func At(d Directory, step func(name string)) Directory {
	d.step = step
	return d
}

// ParseFile parses seal.json and writes it again.
func ParseFile(content []byte) ([]byte, error) {
	f, err := parseFile(content)
	if err != nil {
		return nil, err
	}
	return f.encode()
}
