<?php

/** The site of the tests, as sites use PHP's sessions (tests/clients/README.md). */

declare(strict_types=1);

/** Makes the changes that the body lists. */
function change(): void
{
    foreach (json_decode(file_get_contents('php://input'), true) ?? [] as $operation) {
        [$name, $key, $one, $two] = $operation + [null, null, null, null];
        if ($name === 'set') {
            $_SESSION[$key] = $one;
        } elseif ($name === 'remove') {
            unset($_SESSION[$key]);
        } elseif ($name === 'append') {
            $_SESSION[$key][] = $one;
        } elseif ($name === 'member') {
            $_SESSION[$key][$one] = $two;
        } elseif ($name === 'add') {
            $_SESSION[$key] = ($_SESSION[$key] ?? 0) + $one;
        }
    }
}

/** Sends the first part of the response, with its head. */
function stream(): void
{
    echo ' ';
    while (ob_get_level() > 0) {
        ob_end_flush();
    }
    flush();
}

header('Content-Type: application/json');
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
$response = ['ok' => true];
if ($path === '/who') {
    $response = ['principal' => Cloakroom\principal()];
} elseif ($path !== '/untouched') {
    session_start();
}
if ($path === '/read') {
    $response = ['values' => (object) $_SESSION];
} elseif ($path === '/get') {
    $has = array_key_exists($_GET['key'], $_SESSION);
    $response = ['has' => $has] + ($has ? ['value' => $_SESSION[$_GET['key']]] : []);
} elseif ($path === '/id') {
    $response = ['id' => Cloakroom\id()];
} elseif ($path === '/change') {
    usleep(1000 * (int) ($_GET['sleep'] ?? 0));
    http_response_code((int) ($_GET['status'] ?? 200));
    if (isset($_GET['stream'])) {
        stream();
    }
    change();
    if (isset($_GET['save'])) {
        Cloakroom\save();
    }
} elseif ($path === '/login') {
    session_regenerate_id(true);
    Cloakroom\login($_GET['name']);
} elseif ($path === '/logout') {
    Cloakroom\logout();
} elseif ($path === '/regenerate') {
    session_regenerate_id(true);
} elseif ($path === '/flush') {
    session_destroy();
    session_start();
    change();
}
if (session_status() === PHP_SESSION_ACTIVE && !headers_sent()) {
    // Nothing more is changed, so the changes can leave with the head, without an output buffer, too.
    session_write_close();
}
echo json_encode($response, JSON_PRESERVE_ZERO_FRACTION), "\n";
