<?php
// php -S 127.0.0.1:3000 site.php

function session(string $method, string $path, ?array $body = null) {
    $context = stream_context_create(['http' => [
        'method' => $method,
        'header' => "Content-Type: application/json\r\nX-Session-Token: {$_SERVER['HTTP_X_SESSION_TOKEN']}",
        'content' => $body === null ? '' : json_encode($body),
    ]]);
    return json_decode(file_get_contents($_SERVER['HTTP_X_SESSION_URL'] . $path, false, $context));
}

switch (parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH)) {
    case '/login': // check the password first
        session('PATCH', '', ['principal' => $_GET['name']]);
        header('Location: /');
        break;
    case '/logout':
        session('DELETE', '');
        header('Location: /');
        break;
    default:
        $visits = session('POST', '/values/visits/increment');
        $name = rawurldecode($_SERVER['HTTP_X_SESSION_PRINCIPAL'] ?? 'stranger');
        echo 'Hello ', htmlspecialchars($name), ", visit $visits\n";
}
