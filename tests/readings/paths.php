<?php
// Parses each path of a JSON list on standard input in the ways that PHP sites parse it.
$paths = json_decode(file_get_contents('php://stdin'));
$parsed = fn ($path) => (($read = @parse_url($path, PHP_URL_PATH)) === false) ? null : $read;
$decoded = fn ($path) => $parsed($path) === null ? null : rawurldecode($parsed($path));
echo json_encode([
    'parse_url' => array_map($parsed, $paths),
    'parse_url, decoded' => array_map($decoded, $paths),
    'decoded, parse_url' => array_map(fn ($path) => $parsed(rawurldecode($path)), $paths),
    'decoded twice' => array_map(fn ($path) => rawurldecode(rawurldecode($path)), $paths),
    'backslashes' => array_map(fn ($path) => str_replace('\\', '/', rawurldecode($path)), $paths),
], JSON_THROW_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE);
