<?php
// Counts as old code does: it reads a value, and writes it back later.

function session(string $method, string $path, $body = null) {
    $context = stream_context_create(['http' => [
        'method' => $method,
        'header' => "Content-Type: application/json\r\nX-Session-Token: {$_SERVER['HTTP_X_SESSION_TOKEN']}",
        'content' => $body === null ? '' : json_encode($body),
        'ignore_errors' => true,
    ]]);
    return json_decode(file_get_contents($_SERVER['HTTP_X_SESSION_URL'] . $path, false, $context), true);
}

$n = session('GET', '/values')['n'] ?? 0;
usleep(20000);
session('PUT', '/values/n', $n + 1);
echo $n + 1;
